"""The site of docs/: what `make docs` makes of the code, and links, without MkDocs."""

import importlib.util
import re

import pytest
import typer
import yaml

from excite.cli import app
from excite.command_help import leaves
from excite.recipe import override_keys
from tests.test_docs import ROOT

spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / p for p in hooks.outside() if p.endswith(".md"))]


def test_every_command_and_option_is_in_the_reference():
    text = hooks.commands_text()
    for name, command in leaves(typer.main.get_command(app)).items():
        section = text.split(f"## excite {name}\n")[1].split("\n## ")[0]
        for option in command.params:
            if option.param_type_name == "option":
                assert all(f"`{word}`" in section for word in option.opts), (name, option.opts)


def test_every_recipe_key_is_in_the_reference_with_what_it_means():
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| (.+?) \| (.+) \|$", hooks.recipe_keys_text(), re.MULTILINE)
    assert [key for key, *_ in rows] == override_keys()
    assert all(meaning.strip() for *_, meaning in rows)


def test_every_public_name_is_in_the_reference_once():
    import excite

    names = re.findall(r"^::: (\S+)$", hooks.python_text(), re.MULTILINE)
    assert {f"excite.{name}" for name in excite.__all__} <= set(names)
    assert len(names) == len(set(names))


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    assert named == {"index.md", *(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    here = page.relative_to(ROOT).as_posix()
    missing = [t for t in hooks.links(page.read_text()) if not (ROOT / hooks.repository_path(here, t)).exists()]
    assert not missing


def test_links_that_leave_docs_are_made_to_fit_the_site():
    text = "[a](../README.md#measured) [b](gates.md) `[c](../README.md)` [d](../benchmarks/gpu.sh) [e](https://f.org/g)"
    assert hooks.relinked(text, "docs/guide.md") == (
        "[a](index.md#measured) [b](gates.md) `[c](../README.md)` [d](files/benchmarks/gpu.sh) [e](https://f.org/g)"
    )
    assert hooks.relinked("[a](docs/guide.md) ![b](docs/img/c.png)", "README.md") == "[a](guide.md) ![b](img/c.png)"
    assert hooks.relinked("[a](docs/guide.md#x)", "CONTRIBUTING.md") == "[a](../guide.md#x)"
