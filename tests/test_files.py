"""Files that are whole or absent, and what is told before they are written."""

import ast
import dataclasses
import errno
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from excite.errors import ExciteError
from excite.files import check_writable, read_json, write_json, written_aside
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


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="two renames on other systems")
def test_a_folder_replaces_another_at_one_instant(tmp_path, monkeypatch):
    """No kill can fall between: the system exchanges the two names."""
    for text in ("old", "new"):
        with written_aside(tmp_path / "folder", over=True) as aside:
            aside.mkdir()
            (aside / "file").write_text(text)
        assert (tmp_path / "folder" / "file").read_text() == text
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, lambda *_: pytest.fail("a rename"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_replaces_another_only_if_that_is_asked_for_and_whole(tmp_path, monkeypatch):
    """Where names cannot be exchanged."""
    monkeypatch.setattr("excite.files._exchanged", lambda *_: False)
    place = tmp_path / "folder"
    for text in ("old", "new"):
        with written_aside(place, over=True) as aside:
            aside.mkdir()
            (aside / "file").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (place / "file").read_text() == "new"

    def refused(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)
        with (
            pytest.raises(ExciteError, match="what was there before is unchanged"),
            written_aside(place, over=True) as aside,
        ):
            aside.mkdir()
    with pytest.raises(ExciteError, match="could not be written"), written_aside(place) as aside:
        aside.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (place / "file").read_text() == "new"


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


# --- one door for writes ----------------------------------------------------------------------------------------------

SOURCES = Path(__file__).parents[1] / "src" / "excite"
DOORS = {"told", "written_aside", "patient", "append_text", "write_text", "write_json"}
#: Functions and methods that change a disk, by what they are called on: None is anything.
CHANGES = {
    **dict.fromkeys(("write_text", "write_bytes", "mkdir", "touch", "rename", "copyfile", "copy2", "copytree")),
    **dict.fromkeys(("replace", "link", "utime", "truncate"), "os"),
}
ELSEWHERE = {
    "cli.py main": "the null device",
    "files.py PatientFile.__init__": "what patient() opens",
    "files.py _put_in_place_of_a_folder": "written_aside holds the door",
    "gates/summary.py": "a script of ours that is run to write a file of the package",
    "models/sizes.py": "the same",
    "storage/download.py fetch_file": "fetch and _repair hold the door",
    "storage/download.py _receive": "the same",
    "storage/download.py _link": "fetch holds the door",
    "runtime/compiled.py private_folder": "whoever loads the kernels does without them",
    "runtime/compiled.py _build": "the same",
    "weights/hub.py _link_or_copy": "called in written_aside",
    "weights/digest.py write_safetensors": "save_weights is called in written_aside",
    "weights/digest.py _sort_header": "the same",
    "export/build.py _beside": "export holds the door",
    "export/formats/base.py replace_file": "export holds the door",
    "export/formats/openvino.py replace": "the same",
    "export/formats/openvino.py _joined": "the same",
    "export/formats/pt2.py write": "the same",
}


def name_of(function: ast.expr) -> tuple[str, str]:
    """What is called, and what on."""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
    return (function.id, "") if isinstance(function, ast.Name) else ("", "")


def changes_a_disk(call: ast.Call) -> bool:
    name, on = name_of(call.func)
    if name == "open" and on == "os":
        return any(flag in ast.dump(word) for word in call.args for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
    if name == "open":
        modes = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        texts = [
            n.value for m in modes for n in ast.walk(m) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        return any(len(text) <= 3 and set(text) & set("wax+") for text in texts)
    if name in ("write_text", "mkdir", "rename") and isinstance(call.func, ast.Name):  # excite.files.write_text
        return False
    return name in CHANGES and CHANGES[name] in (None, on)


def open_writes(node: ast.AST, where: str, inside: bool = False) -> Iterator[str]:
    """The functions that change a disk outside the doors, and catch no OSError either."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = f"{where}{'.' if ' ' in where else ' '}{node.name}"
    if isinstance(node, ast.With):
        calls = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
        inside |= any(name_of(call)[0] in DOORS for call in calls)
    if isinstance(node, ast.Call) and not inside and changes_a_disk(node):
        yield where
    if isinstance(node, ast.Try) and any("OSError" in ast.dump(handler.type or node) for handler in node.handlers):
        for inner in node.body:
            yield from open_writes(inner, where, True)
        for inner in [*node.handlers, *node.orelse, *node.finalbody]:
            yield from open_writes(inner, where, inside)
        return
    for inner in ast.iter_child_nodes(node):
        yield from open_writes(inner, where, inside)


def test_whatever_writes_says_it_in_a_sentence_if_it_is_refused():
    """A full or read-only disk must never be a traceback: see ``excite.files.told``."""
    found: set[str] = set()
    for path in sorted(SOURCES.rglob("*.py")):
        found |= set(open_writes(ast.parse(path.read_text()), path.relative_to(SOURCES).as_posix()))
    assert sorted(found - ELSEWHERE.keys()) == []
    assert sorted(ELSEWHERE.keys() - found) == []  # no excuse without its write


@pytest.mark.parametrize(
    ("text", "writes"),
    [
        ("def f(p):\n with p.open('a') as file: file.write('x')", True),
        ("def f(p):\n with open(p, mode='r+b') as file: pass", True),
        ("def f(p):\n with told(p), p.open('xb') as file: pass", False),
        ("def f(p):\n with told(p):\n  os.replace(p, p)", False),
        ("def f(p):\n 'a'.replace('a', 'b'); open(p); p.open('rb'); write_text(p, 'x')", False),
        ("def f(p):\n try:\n  p.mkdir()\n except OSError:\n  p.touch()", True),
        ("def f(p):\n try:\n  p.mkdir()\n except (KeyError, OSError): pass", False),
        ("def f(p):\n os.open(p, os.O_RDONLY)", False),
        ("def f(p):\n os.open(p, os.O_WRONLY | os.O_APPEND)", True),
    ],
)
def test_the_search_for_writes_finds_them(text, writes):
    assert list(open_writes(ast.parse(text), "x.py")) == (["x.py f"] if writes else [])
