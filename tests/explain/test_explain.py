"""From a run folder to tables and figures, by Python and by the command."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
import torch

import excite as package
from excite.errors import ExciteError
from excite.explain import ScaleStatistics, outer_gates
from excite.explain.figures import choose_depths, draw_excitations
from excite.explain.run import SCALARS
from excite.pages.figures import style
from excite.weights.own import save_weights
from tests.report.conftest import numbered

NUMBER, OPTIONAL = {"type": "number"}, {"type": ["number", "null"]}
ROW = {
    "type": "object",
    "required": [*SCALARS, "quantiles", "histogram", "constant", "channel_mean", "channel_sd"],
    "properties": {
        "gate": {"type": "string"},
        "kind": {"const": "SqueezeExcite"},
        "spatial": {"const": False},
        "images": {"const": 40},
        "mean": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "saturated_low": {"type": "number", "minimum": 0, "maximum": 1},
        "saturated_high": {"type": "number", "minimum": 0, "maximum": 1},
        "class_share": OPTIONAL,
        "top1_lost": NUMBER,
        "top1_lost_low": NUMBER,
        "top1_lost_high": NUMBER,
        "loss_added": NUMBER,
        "saved_ms": NUMBER,
        "could_go": {"type": "boolean"},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["source", "model", "images", "top1", "gates", "together", "ms", "explained", "bad_images", "notes"],
    "properties": {
        "images": {"const": 40},
        "top1": NUMBER,
        "ms": NUMBER,
        "gates": {"type": "array", "items": ROW, "minItems": 9, "maxItems": 9},
        "explained": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["path", "top", "target", "layer", "gates"]},
        },
    },
}


@pytest.fixture(scope="module")
def made(trained, photo, tmp_path_factory):
    """What the command printed and wrote for the small run and one photo."""
    from typer.testing import CliRunner

    from excite.cli import app

    out = tmp_path_factory.mktemp("made") / "out"
    words = ["explain", str(trained), str(photo), "--images", "40", "--out", str(out), "--batch", "1", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("excite.explain.ablation._TIMING_SECONDS", 0.0)  # five rounds
        done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), out


def test_json(made):
    printed, out = made
    jsonschema.validate(printed, SCHEMA)
    stored = json.loads((out / "explain.json").read_text())
    assert printed.pop("folder") == str(out)
    assert stored == printed
    for row in printed["gates"]:
        assert len(row["channel_mean"]) == len(row["channel_sd"]) == row["channels"]
        assert sum(row["histogram"]["shares"]) == pytest.approx(1)
    going = [row["gate"] for row in printed["gates"] if row["could_go"]]
    together = printed["together"]
    assert sorted(together["gates"]) == sorted(going) if together else not going
    if together:
        assert together["top1_lost"] <= printed["max_drop"]


def test_csv_holds_the_scalars(made):
    printed, out = made
    rows = list(csv.DictReader((out / "gates.csv").read_text().splitlines()))
    assert [row["gate"] for row in rows] == [row["gate"] for row in printed["gates"]]
    assert list(rows[0]) == list(SCALARS)
    assert float(rows[3]["mean"]) == printed["gates"][3]["mean"]


def words_of(path) -> list[str]:
    return [text.text for text in ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")]


def axes_of(path) -> list[ET.Element]:
    groups = ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}g")
    return [group for group in groups if re.fullmatch(r"axes_\d+", group.get("id", ""))]


def lines_of(axes: ET.Element) -> int:
    """Lines of data: those drawn straight into the axes, not grid lines and ticks of their axis."""
    return sum(re.fullmatch(r"line2d_\d+", group.get("id", "")) is not None for group in axes)


def test_figures_have_a_panel_a_gate_and_a_line_a_class(made):
    printed, out = made
    names = [row["gate"] for row in printed["gates"]]
    for figure, lines in (("excitations", 6), ("spread", 2)):
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        panels = axes_of(out / f"{figure}.svg")
        assert len(panels) == len(names)
        assert [lines_of(panel) for panel in panels] == [lines] * len(names)
        titles = words_of(out / f"{figure}.svg")
        assert all(any(title.startswith(f"{name} (") for title in titles) for name in names)
    assert len(axes_of(out / "health.svg")) == 4
    health = words_of(out / "health.svg")
    assert all(any(word.endswith(name) for word in health) for name in names)
    assert (out / "images" / "photo.png").read_bytes().startswith(b"\x89PNG")


def test_it_never_writes_over_anything(made, trained):
    from excite.explain import explain_and_write as run

    _, out = made
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ExciteError, match="already exists; name a new folder"):
        run(trained, out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    from excite.explain.written import _free_name

    monkeypatch.chdir(tmp_path)
    assert str(_free_name("runs/a-run/")) == "explain-a-run"
    (tmp_path / "explain-a-run").mkdir()
    assert str(_free_name("runs/a-run")) == "explain-a-run-2"
    assert str(_free_name("model.safetensors")) == "explain-model"


def test_python_and_the_table(trained, tmp_path, capsys):
    from excite.commands.explain import show_explanation as show
    from excite.console import Display

    done = set()
    options = {"limit": 30, "ablation": "estimate", "timing": False, "drawn_classes": ["$x^$"], "device": "cpu"}
    options["drawn_gates"] = ["layer3.2.gate"]
    result = package.explain.explain(trained, progress=lambda what, *_: done.add(what), **options)
    assert done == {"collecting scales", "estimating the effect of each gate"}
    assert all(row["estimated"] and row["could_go"] is None and row["saved_ms"] is None for row in result.rows)
    folder = result.write(tmp_path / "out")
    assert [lines_of(panel) for panel in axes_of(folder / "excitations.svg")] == [2]
    assert "$x^$" in words_of(folder / "excitations.svg")
    show(result, Display())
    printed = capsys.readouterr().out
    assert "(estimate)" in printed
    assert "layer3.2.gate" in printed


def test_a_network_that_numbers_its_classes_has_those_of_the_data(trained, photo, tmp_path):
    theirs = numbered(trained, tmp_path / "theirs.safetensors")
    options = {"limit": 20, "ablation": "off", "timing": False, "target": "$x^$", "drawn_classes": ["$x^$"]}
    found, own = (package.explain.explain(source, [str(photo)], **options) for source in (theirs, trained))
    assert found.classes == own.classes
    assert found.explained[0].top == own.explained[0].top
    with pytest.raises(ExciteError, match="no class '0'"):
        package.explain.explain(theirs, **{**options, "target": "0"})


def silenced(source: Path, to: Path) -> Path:
    """The same network with gates that say the same for every image."""
    stored = package.load(source, "cpu")
    for gate in outer_gates(stored.model).values():
        for parameter in gate.parameters():
            torch.nn.init.zeros_(parameter)
    save_weights(to, stored.model, stored.meta)
    return to


def test_gates_that_all_say_nothing_are_told_in_a_sentence(trained, tmp_path):
    options = {"limit": 20, "ablation": "off", "timing": False}
    networks = (silenced(trained, tmp_path / "still.safetensors"), trained)
    still, alive = (package.explain.explain(s, **options).notes for s in networks)
    assert len(still) == 1
    assert "all channels of all gates are constant, as they are right after grafting" in still[0]
    assert alive == []


def test_too_few_images_to_tell_which_gates_could_go_are_told_in_a_sentence(trained, tmp_path):
    still = silenced(trained, tmp_path / "still.safetensors")  # no image changes sides, however many there are
    options = {"timing": False, "overrides": ["data.part=train", "data.limit_val=null"]}
    few, many = (package.explain.explain(still, limit=n, **options) for n in (20, 500))
    assert (few.images, many.images) == (20, 500)
    assert len(few.together.gates) == len(many.together.gates) == len(few.rows)
    assert few.together.high > 1.0 > many.together.high
    expected = f"those marked may cost up to {few.together.high:.1f} points of top-1 together"
    sentence = f"20 images are too few to tell which gates could go: {expected}"
    assert sentence in few.notes
    assert not any("cannot tell" in note for note in many.notes)
    assert [note for note in few.notes if note != sentence and not note.startswith("measured")] == many.notes[1:]
    assert many.notes[0] == "measured: the training images, 500 of 1,437 images"


def test_without_data_images_are_explained_all_the_same(trained, photo, tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    result = package.explain.explain(trained, [str(photo), str(tmp_path / "broken.png")], limit=0, device="cpu")
    assert [each.path for each in result.explained] == [str(photo)]
    assert result.bad[0][0].endswith("broken.png")
    assert all(answer.difference is None for answer in result.explained[0].gates.values())
    folder = result.write(tmp_path / "out")
    assert sorted(path.name for path in folder.rglob("*")) == ["explain.json", "images", "photo.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drawn_gates": ["layer3.2.gat"]}, r"no gate 'layer3.2.gat'; did you mean 'layer3.2.gate'"),
        ({"drawn_classes": ["seven"]}, r"the network has no class 'seven'"),
        ({"target": "11"}, r"the network has no class '11'"),
        ({"layer": "layr3"}, r"the network has no layer 'layr3'; did you mean 'layer3'"),
        ({"ablation": "ful"}, r"ablation is 'ful'; did you mean 'full'"),
        ({"limit": 0}, r"nothing to explain without data and images"),
        ({"overrides": ["data.root=/nowhere", "data.source=folder"]}, r"/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(trained, options, message):
    with pytest.raises(ExciteError, match=message) as raised:
        package.explain.explain(trained, device="cpu", **options)
    assert "\n" not in str(raised.value)


def test_a_missing_image_and_an_ungated_network(trained, ungated, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from excite.cli import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExciteError, match="is neither a file, a folder nor a pattern"):
        CliRunner().invoke(app, ["explain", str(trained), "no-such.png"], catch_exceptions=False)
    with pytest.raises(ExciteError, match="cifar_resnet20 has no gates to explain"):
        CliRunner().invoke(app, ["explain", str(ungated)], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_depths_are_spread_evenly():
    names = [f"g{i}" for i in range(54)]
    chosen = choose_depths(names)
    assert (chosen[0], chosen[-1], len(chosen)) == ("g0", "g53", 9)
    steps = torch.tensor([names.index(name) for name in chosen]).diff()
    assert steps.max() - steps.min() <= 1
    assert choose_depths(names[:4]) == names[:4]


def test_long_class_names_stay_inside_the_figure(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("excite.explain.figures.save", lambda figure, path: drawn.append(figure) or [])
    found = ScaleStatistics(5)
    found.update(torch.rand(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 5)
    classes = ["x" * 80, "狗与猫" * 30, *(f"American Staffordshire terrier, pit bull {k}" for k in range(3))]
    draw_excitations({"gate": found}, classes, range(5), tmp_path / "x", "")
    figure = drawn[0]
    with style():
        figure.draw_without_rendering()
        inside, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert inside.x0 <= legend.x0 < legend.x1 <= inside.x1
    assert legend.y0 >= inside.y0
