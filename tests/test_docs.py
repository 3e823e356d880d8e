"""The commands and Python lines in the README and in docs/ are real."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from excite.cli import app
from excite.command_help import leaves
from excite.data.catalog import TABLES, is_archive
from excite.data.root import is_hub
from excite.recipe import load_recipe
from excite.training.choose import SMALL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of one language."""
    found = []
    for page in PAGES:
        found += [(page.name, text) for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]
    return found


def lines_of(text: str) -> list[str]:
    """The lines of a shell script, with those that a backslash continues in one."""
    return re.sub(r"[ \t]*\\\n[ \t]*", " ", text).splitlines()


COMMANDS = [
    (page, line.split(" > ")[0]) for page, text in blocks("sh") for line in lines_of(text) if line.startswith("excite ")
]


# The migration page has its commands in tables, and some behind torchrun.
MIGRATING = (ROOT / "docs" / "migrating.md").read_text()
COMMANDS += [
    ("migrating.md", line)
    for line in re.findall(r"`(?:torchrun [^`]*-m )?(excite (?!convert`|export`)[^`]+)`", MIGRATING)
    if line != "excite recipes NAME"
]


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 35


def load_what_is_trained(words: list[str]) -> None:
    """The recipe that ``excite train WORDS`` has; of images, such as photos/ or photos.zip, that for a CPU."""
    first, *overrides = words
    if first.endswith("/") or is_archive(first) or is_hub(first) or Path(first).suffix in TABLES:
        table = is_hub(first) or Path(first).suffix in TABLES
        load_recipe(SMALL, [f"data.source={'table' if table else 'folder'}", f"data.root={first}", *overrides])
    else:
        load_recipe(first, overrides)


LEAVES = leaves(typer.main.get_command(app))


def named(words: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two, and the words after it."""
    count = 2 if " ".join(words[:2]) in LEAVES else 1
    return " ".join(words[:count]), words[count:]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_documented_command_parses_and_its_recipe_loads(page, line):
    name, words = named(shlex.split(line)[1:])
    context = LEAVES[name].make_context(name, words)  # raises on an unknown option or a missing argument
    if name == "train" and context.params["resume"] is None:
        load_what_is_trained(context.params["args"])


def examples_of(text: str) -> list[str]:
    return re.findall(r"^\s*(?:Start with: )?(?:torchrun \S+ \S+ -m )?(excite .*\S)", text, re.MULTILINE)


def test_an_example_in_the_help_of_the_whole_is_a_command():
    main = typer.main.get_command(app)
    [example] = examples_of(main.epilog)
    name, *words = shlex.split(example)[1:]
    main.commands[name].make_context(name, words)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_examples_in_the_help_parse(name):
    command = LEAVES[name]
    examples = examples_of(command.help)
    assert examples
    for line in examples:
        found, words = named(shlex.split(line.split(" > ")[0])[1:])
        assert found == name
        context = command.make_context(name, words)
        if name == "train" and context.params["resume"] is None:
            load_what_is_trained(context.params["args"])


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_command_prints_json_when_asked(name):
    assert "--json" in [word for option in LEAVES[name].params for word in option.opts]


@pytest.mark.slow
# The blocks of without-excite.md run without this package, beside an artefact: see tests/export.
@pytest.mark.parametrize(("page", "text"), [b for b in blocks("python") if b[0] != "without-excite.md"])
def test_documented_python_runs(page, text, tmp_path, monkeypatch):
    """Run each block in an empty folder, with a run and a photo of the names that the pages use."""
    from PIL import Image

    from excite.training import train
    from tests.training.small import small

    monkeypatch.chdir(tmp_path)
    Image.new("L", (20, 20), 128).save("photo.jpg")
    run = train(small("epochs=1"), out=tmp_path / "made", quiet=True)["run"]
    (tmp_path / "runs").mkdir()
    Path(run).rename(tmp_path / "runs" / "cifar10-seresnet20-20260101-120000")
    exec(compile(text, page, "exec"), {})


def test_make_targets_named_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = "".join(p.read_text() for p in [*PAGES, ROOT / "CONTRIBUTING.md"])
    named = set(re.findall(r"(?:`|^    |^)make ([a-z-]+)", pages, re.MULTILINE))
    assert {"quickstart", "test"} <= named <= targets


def test_the_picture_of_the_passes_counts_what_the_page_and_its_tables_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "img"))
    import passes

    page = (ROOT / "docs" / "free-excitation.md").read_text()
    drawn = {form: sum(len(accesses) for _, accesses in of_form) for form, of_form in passes.PASSES.items()}
    for direction in ("forward", "backward"):
        table = page.split(f"\n    {direction} ")[1].split("\n\n")[0].splitlines()[1:]
        textbook, ours = drawn[f"{direction}, textbook"], drawn[f"{direction}, two passes"]
        assert table[-1].split() == ["in", "all", str(textbook), str(ours)]
        rows = [re.sub(r"\(.*?\)|[a-z].*$", "", line[19:]) for line in table[:-1]]  # the marks, without the words
        left = sum(len(re.findall("[RW]", row[:31])) for row in rows)
        assert left == textbook
        assert f"{direction}: {textbook}" in page
