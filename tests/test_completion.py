"""The TAB key, in real shells: excite's completion is installed as the documentation says, and keys are pressed."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from excite.cli import app
from excite.commands.common import complete_key, complete_override, complete_recipe, complete_run
from excite.completion import choices, complete

#: A key that prints the line as it is: what was typed, and what TAB has made of it.
SHOW = {
    "bash": 'bind -x \'"\\C-xp": printf "<<%s>>" "$READLINE_LINE"\'',
    "zsh": 'show() { print -rn -- "<<$BUFFER>>" }; zle -N show; bindkey "^Xp" show',
    "fish": "bind \\cxp 'printf \"<<%s>>\" (commandline)'",
}
START = {"bash": ["bash", "-i"], "zsh": ["zsh", "-i"], "fish": ["fish", "-i"]}


class Shell:
    """A shell in a terminal of its own, with ``excite`` and its completion installed."""

    def __init__(self, name: str, home: Path, folder: Path) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"there is no {name} on this machine")
        excite = home / "bin" / "excite"
        excite.parent.mkdir(parents=True)
        excite.write_text(f"#!{sys.executable}\nfrom excite.cli import main\nmain()\n")
        excite.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("BASH", "XDG_", "ZDOTDIR"))}
        environment = {**kept, "HOME": str(home), "PATH": f"{excite.parent}:{os.environ['PATH']}", "TERM": "xterm"}
        (home / ".bashrc").write_text("PS1='$ '\nbind 'set enable-bracketed-paste off'\n")
        (home / ".zshrc").write_text("PS1='$ '\nskip_global_compinit=1\n")
        installing = [name, "-c", "excite --install-completion; true"]
        subprocess.run(installing, env=environment, cwd=folder, check=True, capture_output=True)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(name, START[name], environment)
        self.type(SHOW[name] + "\n")
        self.after("excite --version\n", "excite [0-9.]+\\s")
        self.tab("excite ")  # in zsh, the first one of a session only loads what typer has installed

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def after(self, text: str, wanted: str) -> str:
        """Type, and read until something is printed."""
        self.type(text)
        seen = ""
        while True:
            ready, _, _ = select.select([self.terminal], [], [], 60)
            assert ready, f"nothing more after {text!r}: {seen!r}"
            seen += os.read(self.terminal, 65536).decode(errors="replace")
            if found := re.search(wanted, seen):
                return found.group()

    def tab(self, typed: str) -> str:
        """The line after the TAB key."""
        return self.after(f"\x15{typed}\t\x18p", "<<.*>>")[2:-2]

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run and photographs."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("runs/first-run", "runs/other-run"):
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.yaml").write_text("name: x\n")
    (folder / "photos" / "train").mkdir(parents=True)
    (folder / "photos" / "val").mkdir()
    (folder / "single.jpg").write_text("")
    return folder


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def shell(request, tmp_path_factory, folder):
    """Each shell that there is."""
    shell = Shell(request.param, tmp_path_factory.mktemp(request.param), folder)
    yield shell
    shell.close()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("excite vali", "excite validate "),
        ("excite train digits-s", "excite train digits-seresnet20 "),
        ("excite train digits-seresnet20 train.ep", "excite train digits-seresnet20 train.epochs="),
        ("excite train digits-seresnet20 epo", "excite train digits-seresnet20 epochs="),
        (
            "excite train digits-seresnet20 train.label_smoothing=",
            "excite train digits-seresnet20 train.label_smoothing=0.0 ",
        ),
        ("excite train digits-seresnet20 precision=bf", "excite train digits-seresnet20 precision=bf16 "),
        ("excite train digits-seresnet20 model.name=senet1", "excite train digits-seresnet20 model.name=senet154 "),
        ("excite train folder-seresnet50 data.root=pho", "excite train folder-seresnet50 data.root=photos/"),
        (
            "excite train folder-seresnet50 data.root=photos/tr",
            "excite train folder-seresnet50 data.root=photos/train/",
        ),
        ("excite train folder-seresnet50 root=sin", "excite train folder-seresnet50 root=single.jpg "),
        ("excite train --resume runs/fi", "excite train --resume runs/first-run "),
        (
            "excite train digits-seresnet20 init_from=runs/ot",
            "excite train digits-seresnet20 init_from=runs/other-run ",
        ),
        ("excite validate runs/fi", "excite validate runs/first-run "),
        ("excite validate runs/first-run data.pa", "excite validate runs/first-run data.part="),
        ("excite validate runs/first-run data.part=te", "excite validate runs/first-run data.part=test "),
        ("excite validate runs/first-run --dev", "excite validate runs/first-run --device "),
        ("excite validate runs/first-run --device cu", "excite validate runs/first-run --device cuda "),
        ("excite export runs/first-run --format on", "excite export runs/first-run --format onnx "),
        ("excite predict runs/first-run sin", "excite predict runs/first-run single.jpg "),
        ("excite models cifar_seresnet2", "excite models cifar_seresnet20 "),
        ("excite recipes digits", "excite recipes digits-seresnet20 "),
    ],
)
def test_the_tab_key(shell, typed, line):
    assert shell.tab(typed) == line


# --- without a shell --------------------------------------------------------------------------------------------------


GROUP = typer.main.get_command(app)


def bash(words: list[str], at: int | None = None) -> list[str]:
    environment = {"_EXCITE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words)}
    environment["COMP_CWORD"] = str(len(words) - 1 if at is None else at)
    answer, status = complete(GROUP, environment)
    assert status == 0
    return answer.split("\n") if answer else []


def test_bash_gets_what_comes_behind_the_sign_where_it_cuts_a_word(folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = ["excite", "train", "digits-seresnet20", "train.precision", "="]
    assert bash(words) == ["auto", "fp32", "bf16", "fp16"]
    assert bash([*words, "bf"]) == ["bf16"]
    assert bash([*words, "bf16", "ep"], 6) == ["epochs=", "epochs=VALUE"]
    assert bash(["excite", "train", "x", "data.root", "=", "pho"]) == []  # files, which bash knows itself


def test_bash_that_does_not_cut_words_gets_whole_ones(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert bash(["excite", "train", "x", "train.precision=bf"]) == ["train.precision=bf16"]
    assert bash(["excite", "train", "x", "data.root=sing"]) == ["data.root=single.jpg"]
    assert bash(["excite", "train", "x", "data.root=photos/"]) == ["data.root=photos/train/", "data.root=photos/val/"]


def test_a_single_choice_that_goes_on_is_two_so_that_bash_adds_no_space():
    assert bash(["excite", "train", "x", "data.roo"]) == ["data.root=", "data.root=VALUE"]
    assert bash(["excite", "train", "x", "schedule.unit"]) == ["schedule.unit=step", "schedule.unit=epoch"]


def test_a_command_of_two_words(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "data" in choices(GROUP, [], "")
    assert "check" in choices(GROUP, ["data"], "c")
    assert choices(GROUP, ["data", "check"], "--st") == ["--strict"]
    assert "runs/first-run" in choices(GROUP, ["data", "check"], "runs/")
    assert choices(GROUP, ["data", "check", "x"], "data.sour") == ["data.source="]
    assert choices(GROUP, ["data", "check", "x", "--device"], "cu") == ["cuda"]


def test_what_comes_next_depends_on_what_is_there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "digits-seresnet20" in choices(GROUP, ["train"], "")
    assert "runs/first-run" in choices(GROUP, ["train"], "")
    after = choices(GROUP, ["train", "digits-seresnet20"], "")
    assert "train.epochs=" in after
    assert "digits-seresnet20" not in after
    assert set(choices(GROUP, ["validate", "runs/first-run"], "")) >= {"data.root=", "data.part="}
    assert not any(name.startswith("train.") for name in choices(GROUP, ["validate", "runs/first-run"], ""))
    assert choices(GROUP, ["validate", "--device"], "cp") == ["cpu"]
    assert choices(GROUP, ["validate"], "--device=cp") == ["--device=cpu"]
    assert choices(GROUP, ["nonsense"], "x") == []
    assert choices(GROUP, [], "--ver") == ["--version"]


def test_names_are_completed_by_what_the_recipe_takes():
    assert complete_key("data.part=") == ["data.part=val", "data.part=test", "data.part=train"]
    assert complete_key("nesterov=") == ["nesterov=true", "nesterov=false"]
    assert complete_key("data.root=x") == []
    assert complete_key("name_of_nothing=") == []
    assert "every_epochs=" not in complete_key("every")  # in several sections: it cannot be given without one
    assert "batch_size=" in complete_key("batch")  # the training's
    assert complete_recipe("digits") == ["digits-seresnet20"]
    assert "train.epochs=" in complete_override("train.ep")


def test_runs_are_found_where_the_path_points(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert complete_run("") == ["runs/first-run", "runs/other-run"]
    assert complete_run(f"{folder}/runs/f") == [f"{folder}/runs/first-run"]
    assert complete_run("nowhere/") == []


@pytest.mark.parametrize("shell", ["complete_zsh", "complete_fish"])
def test_other_shells_send_the_line(shell, folder, monkeypatch):
    monkeypatch.chdir(folder)
    line = "excite train 'digits-seresnet20' train.ep"
    answer, status = complete(GROUP, {"_EXCITE_COMPLETE": shell, "_TYPER_COMPLETE_ARGS": line})
    assert (answer, status) == (("compadd -S '' -- train.epochs=" if "zsh" in shell else "train.epochs="), 0)


def test_what_is_not_ours_is_left_to_typer():
    assert complete(GROUP, {"_EXCITE_COMPLETE": "source_bash"}) is None


@pytest.mark.parametrize("words", [["train", "digits-seresnet20", "train.ep"], ["train", "dig"], ["validate", "r"]])
def test_completing_imports_nothing_heavy(words):
    code = (
        "import os, sys\n"
        f"os.environ |= {{'_EXCITE_COMPLETE': 'complete_bash', 'COMP_WORDS': '\\n'.join(['excite', *{words}]), "
        f"'COMP_CWORD': '{len(words)}'}}\n"
        "from excite.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'numpy', 'PIL', 'rich') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
