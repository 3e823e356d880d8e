"""``model("photo.jpg")``: what a trained network may be called on."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import excite as package
from excite.data.decode import BadImageError, load_image
from excite.errors import ExciteError


@pytest.fixture(scope="module")
def model(tiny):
    return package.load(tiny.gated, "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three images of noise, of a size other than the network's."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def same(found, expected) -> bool:
    """Whether the classes are the same; probabilities of another batch may be rounded otherwise."""
    return [[name for name, _ in p.top] for p in found] == [[name for name, _ in p.top] for p in expected] and all(
        share == pytest.approx(other, rel=1e-5)
        for p, q in zip(found, expected, strict=True)
        for (_, share), (_, other) in zip(p.top, q.top, strict=True)
    )


def test_files_by_every_kind_of_name(model, photos, monkeypatch):
    expected = model(photos)
    assert [p.path for p in expected] == [str(photos / f"{i}.png") for i in range(3)]
    assert all(len(p.top) == 5 for p in expected)
    assert same(model(str(photos)), expected)
    assert same(model(f"{photos}/*.png"), expected)
    assert same(model([photos / "0.png", str(photos / "1.png"), f"{photos}/2*"]), expected)
    assert same(model(path for path in sorted(photos.iterdir())), expected)
    assert same(model(str(photos / "1.png")), expected[1:2])
    monkeypatch.chdir(photos)
    assert same(model("1.png"), expected[1:2])
    assert same(list(model.predict("1.png")), expected[1:2])
    assert [p.path for p in model(["1.png", "1.png"])] == ["1.png", "1.png"]  # one answer for each that is given
    assert len(model([])) == 0


def test_an_address(model, photos, tmp_path, monkeypatch):
    pytest.importorskip("fsspec.implementations.http")
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(photos)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = model(f"http://127.0.0.1:{server.server_address[1]}/1.png")
    finally:
        server.shutdown()
    assert same(found, model(photos / "1.png"))


def test_images_in_memory(model, photos):
    expected, paths = model(photos), sorted(photos.iterdir())
    arrays = [pixels(path) for path in paths]
    assert same(model(arrays), expected)
    assert same(model(np.stack(arrays)), expected)
    assert same(model(arrays[1]), expected[1:2])
    assert [p.path for p in model([*arrays, paths[0]])] == ["#0", "#1", "#2", str(paths[0])]
    assert same(model([Image.fromarray(array) for array in arrays]), expected)
    for kind in (bytes, bytearray, memoryview):
        assert same(model(kind(paths[1].read_bytes())), expected[1:2])
    mixed = model([paths[0], arrays[1], paths[2].read_bytes()])
    assert same(mixed, expected)


def test_what_pillow_has_opened_is_its_file(model, photos):
    expected = model(photos / "1.png")
    with Image.open(photos / "1.png") as image:
        assert same(model(image), expected)
        assert model(image)[0].path == str(photos / "1.png")
        image.load()
        image.paste(0, (0, 0, *image.size))  # from here on it is not
        assert not same(model(image), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_an_image_in_memory_is_read_as_its_file_is(mode, tmp_path):
    """Every mode, saved without loss where a format takes it, is the same from memory and from the file."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 4096, (9, 7), dtype=np.uint16))
    elif mode in ("LA", "PA"):
        image = colours.convert("LA").convert(mode)
    else:
        image = (colours if mode == "RGBA" else colours.convert("RGB")).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr", "PA") else "x.png")
    if mode in ("HSV", "PA", "YCbCr"):  # no format holds it as it is
        expected = image.convert("RGBA" if mode == "PA" else "RGB")
        path = tmp_path / "x.png"
        expected.save(path)
    else:
        image.save(path)
    for white in (65535, 4095):
        for wanted in ("RGB", "L"):
            assert np.array_equal(load_image(image, wanted, white=white), load_image(path, wanted, white=white))


def test_sixteen_bits_and_orientation(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, 3), dtype=np.uint16)
    found = np.asarray(load_image(values, white=4095))
    assert np.array_equal(found, np.round(values * (255 / 4095)).astype(np.uint8))
    image, exif = Image.fromarray(found), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        upright = np.asarray(load_image(tmp_path / "x.png"))
        assert np.array_equal(load_image(opened), upright)
        opened.load()
        assert np.array_equal(load_image(opened), upright)
        assert np.array_equal(load_image(opened.convert("RGB")), upright)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "give the path of an image, a folder"),
        (3, "; 3 is none of them"),
        ({"a": 1}, "; a dict is none of them"),
        ([None], "; None in a list is none of them"),
        ([["photo.jpg"]], "; a list in a list is none of them"),
        (torch.zeros(3, 8, 8), r"; a Tensor is none of them: give tensor\.permute\(1, 2, 0\)\.numpy\(\), uint8"),
        ([torch.zeros(3, 8, 8)], "; a Tensor in a list is none of them"),
        (np.zeros((8, 8, 3), np.float32), r"an array of float32 .*; convert values from 0 to 1 with \(255 \* array\)"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\); channels come last: np\.moveaxis"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\(2, 3, 8, 8\); channels come last"),
        (np.zeros((8, 8, 17), np.uint8), "with 1 to 16 channels, not an array of uint8"),
        (np.zeros((0, 8), np.uint8), "not an array of uint8"),
        (np.array(["photo.jpg"]), "not an array of <U9"),
        (object(), "; an object is none of them"),
    ],
    ids=range(14),
)
@pytest.mark.parametrize("ask", ["call", "predict"])
def test_anything_else_is_a_type_error_that_says_what_to_give(model, given, message, ask):
    with pytest.raises(TypeError, match=message):
        model(given) if ask == "call" else list(model.predict(given))


def test_a_name_that_is_no_file_is_told_whole_and_not_by_its_letters(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for ask in (model, lambda name: list(model.predict(name)), partial(package.predict, "nowhere")):
        with pytest.raises(ExciteError, match=r"^'photo\.jpg' is neither a file, a folder nor a pattern"):
            ask("photo.jpg")


def test_an_image_that_cannot_be_read_keeps_its_place(model, photos, tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    found = model([photos / "0.png", tmp_path / "broken.png", b"neither", photos / "1.png"], batch_size=2)
    assert [p.problem is None for p in found] == [True, False, False, True]
    assert same(found.readable, model([photos / "0.png", photos / "1.png"]))
    assert [path for path, _ in found.bad] == [str(tmp_path / "broken.png"), "#2"]
    assert "cannot be read: it is not an image" in found._repr_html_()
    with pytest.raises(BadImageError, match=r"broken\.png: it is not an image"):
        model(tmp_path / "broken.png")
    with pytest.raises(BadImageError, match=r"\(and 1 more\)"):
        model([tmp_path / "broken.png", b"neither"])
    answers = model.predict([photos / "0.png", tmp_path / "broken.png"])
    assert next(answers).path == str(photos / "0.png")
    with pytest.raises(BadImageError, match=r"broken\.png"):
        next(answers)


def test_the_answer_is_a_sequence_that_shows_itself(model, photos):
    found = model(photos, top_k=2)
    assert len(found) == 3
    assert found[0] == next(iter(found))
    assert found[1:] == model(photos, top_k=2)[1:]
    assert found[0].pixels.shape == (8, 8, 1)
    page = found._repr_html_()
    assert page.count("<img ") == 3
    assert "0.png" in page
    assert f"{100 * found[0].top[0][1]:.1f} %" in page
    assert found[0]._repr_html_().count("<img ") == 1
    many = model([pixels(photos / "0.png")] * 30)
    assert many._repr_html_().count("<img ") == 20
    assert "and 10 more" in many._repr_html_()
    assert many[29].pixels is None


def test_names_are_shown_and_do_nothing(model, tmp_path):
    name = tmp_path / "<img src=x onerror=alert(1)>\u202e\x1b[31m.png"
    Image.new("L", (9, 9)).save(name, "PNG")
    page = model(name)._repr_html_()
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_predict_is_the_command(model, photos, tiny, tmp_path):
    told = []
    found = package.predict(tiny.gated, [photos, photos / "0.png"], grid=tmp_path / "grid.png", say=told.append)
    assert [p.path for p in found] == [str(photos / f"{i}.png") for i in range(3)]  # each file once
    assert {len(p.top) for p in found} == {3}
    assert same(found, model(photos, top_k=3))
    assert told == [f"grid: {tmp_path / 'grid.png'}"]
    drawn = package.predict(tiny.gated, pixels(photos / "0.png"), grid=tmp_path / "memory.png")
    assert same(drawn, found[:1])
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
