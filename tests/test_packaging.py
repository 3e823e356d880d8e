"""What ``pyproject.toml`` promises to those who install the package, held against the tree."""

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from excite.errors import install_line

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "excite"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def texts(*patterns: str) -> dict[Path, str]:
    """The files by the patterns, read."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return {path: path.read_text(encoding="utf-8") for path in paths}


def test_every_file_of_the_package_that_is_no_module_is_in_its_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["excite"]
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    listed = {pattern: {p for p in PACKAGE.glob(pattern) if p.suffix != ".py"} for pattern in patterns}
    assert files == set().union(*listed.values())
    assert [pattern for pattern, found in listed.items() if not found] == []


def test_every_folder_of_the_package_is_a_package():
    """The wheel has the folders with an ``__init__.py``, and those of data that the test above goes through."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_extras_that_are_named_anywhere_exist():
    named = {}
    for path, text in texts("src/**/*.py", "docs/*.md", "*.md", "tests/**/*.py", "pyproject.toml").items():
        found = re.findall(r"install_line\(['\"](\w+)['\"]\)", text)
        for words in re.findall(r"(?:excite|'?\.)\[([a-z]+(?:,[a-z]+)*)\]['\" `]", text):
            found += words.split(",")
        named |= dict.fromkeys(found, path)
    assert {"export", "heif", "timm", "track"} <= named.keys()
    assert {name: path for name, path in named.items() if name not in EXTRAS} == {}


def test_one_place_says_how_an_extra_is_installed():
    """``excite[...]`` alone would be looked for in the registry by those who use a clone."""
    found = [path.relative_to(PACKAGE) for path, text in texts("src/**/*.py").items() if "'excite[" in text]
    assert found == [Path("errors.py")]


def test_the_line_of_an_extra_names_the_clone_in_a_clone_and_the_package_elsewhere(tmp_path):
    assert shlex.split(install_line("export")) == ["pip", "install", "-e", f"{ROOT}[export]"]
    site = tmp_path / "lib" / "site-packages" / "excite"
    site.mkdir(parents=True)
    spec = importlib.util.spec_from_file_location("elsewhere", shutil.copy(PACKAGE / "errors.py", site))
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    assert elsewhere.install_line("export") == "pip install 'excite[export]'"


def test_the_versions_that_the_tests_run_with_are_within_the_range_that_is_asked_for():
    requirements = pytest.importorskip("packaging.requirements", reason="packaging is not installed")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    asked = [requirements.Requirement(text) for text in PROJECT["project"]["dependencies"]]
    outside = [each for each in asked if pinned[each.name.lower().replace("_", "-")] not in each.specifier]
    assert outside == []
    torch = next(each for each in asked if each.name == "torch").specifier
    assert "2.11.0" in torch
    assert "3.0.0" not in torch  # nobody knows it


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert (citation["title"], citation["version"], citation["license"]) == ("excite", project["version"], "Apache-2.0")
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "authors", "type"} <= citation.keys()


def test_what_quickstart_installs_is_pinned_by_hash():
    """``make pin`` was run after the last change of versions."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned)
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    needed = {canonical(re.match(r"[\w-]+", each).group()) for each in PROJECT["project"]["dependencies"]} - {"torch"}
    assert needed - pinned.keys() == set()
    constraints = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    tested = {canonical(name): version for name, version in constraints}
    assert {name: tested[name] for name in pinned if name in tested} == {
        name: version for name, version in pinned.items() if name in tested
    }
    assert needed - tested.keys() == set()
    assert "torch" not in pinned  # its builds differ from index to index


def test_what_benchmarks_and_scripts_import_is_there():
    """They are not part of the package, and nothing else notices that a name was moved."""
    missing = []
    for path, text in texts("benchmarks/*.py", "docs/*.py", "tests/**/rewrite.py", "tests/**/make_golden.py").items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "excite":
                module = importlib.import_module(node.module)
                for each in node.names:
                    known = hasattr(module, each.name) or importlib.util.find_spec(f"{node.module}.{each.name}")
                    missing += [] if known else [f"{path.name}: {node.module}.{each.name}"]
    assert missing == []


def canonical(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()
