"""Zip and tar files as they are found: damaged, hostile, and with what other programs put into them."""

import io
import os
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excite.data import DataConfig, DataSets, load_image, open_data
from excite.data import archive as archives
from excite.data.archive import members, open_archive
from excite.data.packed import Container, Packed, open_bytes
from excite.errors import ExciteError
from excite.trained.given import given_images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / ".cache"))


def png(level: int, side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), level).save(out, "PNG")
    return out.getvalue()


def names(count: int = 4) -> list[str]:
    return [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(count)]


def write_zip(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def files() -> dict[str, bytes]:
    return {name: png(10 * i) for i, name in enumerate(names())}


def opened(path: Path, **options) -> DataSets:
    return open_data(DataConfig(source="folder", root=str(path), image_size=8, in_chans=1, mode="stream", **options))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_what_is_no_image_is_ignored_and_counted(write, tmp_path):
    more = {
        "__MACOSX/cat/._0.png": b"x",
        "cat/.DS_Store": b"x",
        "cat/notes.txt": b"x",
        "README": b"x",
        "loose.png": b"x",
    }
    data = opened(write(tmp_path / ("a.zip" if write is write_zip else "a.tar"), files() | more))
    assert len(data.train) + len(data.val) == 8
    said = data.describe()
    assert "1 file ignored: 1 .txt" in said
    assert "hidden file" in said
    assert "1 images in" in said


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    odd = {"../../evil.png": png(1), "/etc/evil.png": png(2), "cat\\9.png": png(3), "./cat//8.png": png(4)}
    path = write_zip(tmp_path / "a.zip", files() | odd)
    archive = open_archive(path)
    assert archive.folders(path) == ["cat", "dog", "etc"]  # ".." is hidden, as all names with a dot in front
    cats = archive.below(f"{path}/cat")
    assert [os.path.basename(file.path) for file in cats.files] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "8.png",
        "9.png",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache", "a.zip"]
    assert not (tmp_path.parent.parent / "evil.png").exists()


def test_the_last_of_several_members_of_one_name_counts(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, files())
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("cat/0.png")
        info.size = len(png(200))
        archive.addfile(info, io.BytesIO(png(200)))
    found = open_archive(path).below(f"{path}/cat").files
    packed = open_archive(path).packed([file.path for file in found])
    assert len(found) == 4
    assert load_image(packed.member(0, found[0].path), "L").getpixel((0, 0)) == 200


def test_links_and_holes_in_tar_files_are_left_out_and_said(tmp_path):
    path = write_tar(tmp_path / "a.tar", files())
    with tarfile.open(path, "a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "cat/link.png"),
            (tarfile.LNKTYPE, "cat/hard.png"),
            (tarfile.FIFOTYPE, "cat/p.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "cat/0.png"
            archive.addfile(info)
    data = opened(path)
    assert len(data.train) + len(data.val) == 8
    assert [reason for _, reason in data.unusable] == ["it is a link", "it is a link", "it is not a file"]
    assert "left out: " in data.describe()


def test_a_damaged_member_is_a_broken_image(tmp_path):
    path = write_zip(tmp_path / "a.zip", {name: png(9, 64) for name in names()})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("cat/1.png")
    content[info.header_offset + 45] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ExciteError, match=r"a\.zip/cat/1\.png: the zip file is damaged"):
        load_image(open_archive(path).packed([f"{path}/cat/1.png"]).member(0, f"{path}/cat/1.png"))
    content[info.header_offset : info.header_offset + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    with pytest.raises(ExciteError, match=r"its header is missing"):
        load_image(open_archive(path).packed([f"{path}/cat/1.png"]).member(0, f"{path}/cat/1.png"))


def test_a_member_that_claims_another_size_is_not_unpacked_beyond_it(tmp_path):
    """A bomb: a few bytes that become gigabytes, in a directory that says so, or that says little."""
    path = write_zip(tmp_path / "a.zip", {"cat/0.png": bytes(50_000_000)})
    packed = open_archive(path).packed([f"{path}/cat/0.png"])
    small = Packed(
        packed.files, packed.file, packed.offset, packed.length, packed.size * 0 + 100, packed.kind, packed.check
    )
    with pytest.raises(ValueError, match="check sum does not match"):
        small.member(0, "x").open()
    large = Packed(
        packed.files, packed.file, packed.offset, packed.length, packed.size + (1 << 31), packed.kind, packed.check
    )
    with pytest.raises(ValueError, match="more than an image can have"):
        large.member(0, "x").open()


def test_encrypted_and_unknown_members_are_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", files(), zipfile.ZIP_STORED)
    write_zip(tmp_path / "b.zip", files(), zipfile.ZIP_BZIP2)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    flags = struct.unpack_from("<H", content, at + 8)[0] | 1
    path.write_bytes(content[: at + 8] + struct.pack("<H", flags) + content[at + 10 :])
    data = opened(path)
    assert data.unusable == [(f"{path}/cat/0.png", "it is encrypted")]
    with pytest.raises(ExciteError, match=r"none of the 8 files in .*its compression \(number 12\) is not supported"):
        opened(tmp_path / "b.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.tgz"])
def test_truncated_and_foreign_archives_are_one_sentence(name, tmp_path):
    path = tmp_path / name
    modes = {".zip": "", ".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}
    mode = modes[path.suffix]
    write_zip(path, files()) if not mode else write_tar(path, files(), mode)
    whole = path.read_bytes()
    assert len(opened(path).train)
    for content in (whole[: len(whole) // 2], b"\0" * 100, b"text", whole[:600][::-1]):
        path.write_bytes(content)
        with pytest.raises(ExciteError, match=r"is damaged|has no class folders|has no images") as failed:
            opened(path)
        assert "\n" not in str(failed.value)


def test_a_listing_is_remembered_until_the_archive_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", files())
    listed = []
    real = archives._of_tar
    monkeypatch.setattr(archives, "_of_tar", lambda *words: listed.append(1) or real(*words))
    first, second = members(path), members(path)
    assert first.names == second.names
    assert (first.rows == second.rows).all()
    assert len(listed) == 1
    write_tar(path, files() | {"dog/9.png": png(1)})
    assert len(members(path).names) == 9
    assert len(listed) == 2
    for file in Path(os.environ["EXCITE_CACHE"]).rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert len(members(path).names) == 9
    assert len(listed) == 3


def test_a_member_reads_like_a_file(tmp_path):
    content = bytes(range(256)) * 500
    path = write_zip(tmp_path / "a.zip", {"a.bin": content}, zipfile.ZIP_STORED)
    archive = open_archive(path)
    row = (0, *archive.members.rows[0].tolist())
    with open_bytes(Packed.of([Container.of(path)], [row]).member(0, "a.bin")) as file:
        assert file.read(10) == content[:10]
        file.seek(-7, io.SEEK_END)
        assert file.read() == content[-7:]
        file.seek(100_000)
        assert file.read(1 << 40) == content[100_000:]  # no more is allocated than there is
        file.seek(0)
        assert np.frombuffer(file.read(), np.uint8).sum() == sum(content)


def test_an_archive_that_changes_after_it_was_listed_is_not_read_at_the_old_places(tmp_path):
    path = write_tar(tmp_path / "a.tar", files())
    first = open_archive(path)
    member = first.packed([f"{path}/cat/1.png"]).member(0, "x")
    assert load_image(member, "L").getpixel((0, 0)) == 10
    path.unlink()
    write_tar(path, {name: png(255 - 10 * i) for i, name in enumerate(names(5))})
    assert load_image(open_archive(path).packed([f"{path}/cat/1.png"]).member(0, "x"), "L").getpixel((0, 0)) == 245
    other = Container(member.file.path, member.file.size, member.file.modified + 1)
    with pytest.raises(ExciteError, match="has changed since its images were listed: start again"):
        load_image(replace(member, file=other), "L")


def test_images_in_an_archive_can_be_predicted(tmp_path):
    said: list[str] = []
    given = given_images(str(write_zip(tmp_path / "a.zip", files() | {"cat/a.txt": b"x"})), said.append)
    assert [os.path.relpath(image.name, tmp_path) for image in given][:2] == ["a.zip/cat/0.png", "a.zip/cat/1.png"]
    assert load_image(given[3].open(), "L").getpixel((0, 0)) == 30
    assert "1 file ignored: 1 .txt" in said[0]
    with pytest.raises(ExciteError, match=r"a\.zip' contains no images"):
        given_images(str(write_zip(tmp_path / "a.zip", {"a.txt": b"x"})))
