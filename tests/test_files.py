"""Files that are whole or absent, and what is told before they are written."""

import dataclasses
import os
from importlib import import_module
from typing import get_type_hints

import pytest

from excite.errors import ExciteError
from excite.files import check_writable, read_json, write_json
from excite.pages.figures import save, style


def test_a_place_that_cannot_be_written_is_told_beforehand(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder" / "page.html")  # folders are made
    check_writable(tmp_path / "page.html")
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    with pytest.raises(ExciteError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "page.html")
    with pytest.raises(ExciteError, match="is a folder; name a file in it"):
        check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(ExciteError, match=f"the folder {tmp_path} is read-only for you"):
        check_writable(tmp_path / "new" / "page.html")


def test_json_comes_back_and_what_is_none_is_told(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1.5, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1.5, None]}
    for text in ('{"a": ', "[1]", "\xff"):
        (tmp_path / "b.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ExciteError, match=r"b\.json .*delete it to go on without it"):
            read_json(tmp_path / "b.json")


@pytest.mark.filterwarnings("error:Glyph")
def test_users_texts_in_figures_are_no_formulas(tmp_path):
    from matplotlib.figure import Figure

    with style():
        figure = Figure()
        figure.subplots().set_title("$x^$ ドッグ")  # no valid formula, and no glyphs in Matplotlib's font
        png, svg = save(figure, tmp_path / "a.b")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "$x^$ ドッグ" in svg.read_text(encoding="utf-8")
    assert (png.name, svg.name) == ("a.b.png", "a.b.svg")


@pytest.mark.parametrize(
    ("made", "described"),
    [
        ("excite.explain.ablation:Ablation", "excite.explain.ablation:AblationValues"),
        ("excite.scaling:Prediction", "excite.scaling:PredictionValues"),
        ("excite.bench.settings:Setting", "excite.bench.settings:SettingValues"),
        ("excite.data.preprocessing:Preprocessing", "excite.data.preprocessing:PreprocessingValues"),
    ],
)
def test_a_type_that_describes_a_dataclass_in_json_has_its_fields(made, described):
    """``asdict`` makes it, which no type checker looks into."""
    one, other = (getattr(import_module(name.partition(":")[0]), name.partition(":")[2]) for name in (made, described))
    assert {field.name for field in dataclasses.fields(one)} == set(get_type_hints(other))
