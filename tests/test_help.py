"""``--help``: it fits the terminal, cuts nothing, and says what belongs together."""

import re
import shlex

import pytest
import typer.main

from excite import command_help
from excite.cli import _GROUPS, app
from excite.command_help import leaves
from excite.text import cells
from tests.command import run_command

GROUP = typer.main.get_command(app)
LEAVES = leaves(GROUP)
NAMES = sorted(LEAVES)


def help_of(name, width, monkeypatch):
    monkeypatch.setattr(command_help, "columns", lambda stream: width)
    monkeypatch.setenv("NO_COLOR", "1")
    context = GROUP.context_class(GROUP, info_name="excite")
    if name is None:
        return command_help.help_text(GROUP, context)
    command = LEAVES[name]
    return command_help.help_text(command, command.context_class(command, info_name=name, parent=context))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", [None, *NAMES])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(name, width, monkeypatch):
    text = help_of(name, width, monkeypatch)
    for line in text.split("\n"):
        words = line.removesuffix(" \\").split()
        assert cells(line) <= width or len(words) == 1, line  # a word that is longer than the terminal is not cut
    assert "…" not in text
    assert "<bool>" not in text
    command = GROUP if name is None else LEAVES[name]
    for param in command.params:
        for word in (
            [*param.opts, *param.secondary_opts] if param.param_type_name == "option" else [param.metavar or ""]
        ):
            assert word.split(" ")[0] in text
        assert set((param.help or "").split()) <= set(text.split())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_that_is_folded_is_the_same_to_a_shell(name, monkeypatch):
    wide, narrow = (help_of(name, width, monkeypatch) for width in (None, 60))
    found = [re.findall(r"^ +(excite .*)", text.replace(" \\\n", " "), re.MULTILINE) for text in (wide, narrow)]
    assert found[0]
    assert [shlex.split(line) for line in found[0]] == [shlex.split(line) for line in found[1]]


def test_the_commands_are_grouped_by_what_one_wants(monkeypatch):
    text = help_of(None, 80, monkeypatch)
    titles = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert titles == ["Options", "Train", "Measure", "Understand", "Ship", "Bring in", "Plan"]
    assert titles[1:] == list(_GROUPS)
    assert sorted(re.findall(r"^  ([a-z]+) ", text, re.MULTILINE)) == sorted(GROUP.commands)


def test_h_is_short_for_help(tmp_path):
    for words in ([], ["train"], ["export"], ["data"], ["data", "check"]):
        short, long = (run_command([*words, flag], tmp_path) for flag in ("-h", "--help"))
        assert (short.returncode, short.stdout) == (0, long.stdout)
        assert short.stdout.startswith("Usage: excite")


@pytest.mark.parametrize("words", [[], ["data"]])
def test_a_group_without_a_command_prints_its_help(words, tmp_path):
    alone, asked = (run_command([*words, *more], tmp_path) for more in ([], ["--help"]))
    assert (alone.returncode, alone.stdout.rstrip()) == (2, asked.stdout.rstrip())
