"""Tab completion in bash, zsh and fish. Nothing heavy is imported.

``excite --install-completion`` comes from typer, and so do the scripts that it installs: they call the command with
``_EXCITE_COMPLETE`` and the words typed so far in the environment. This module answers them, for three reasons:

- bash splits words at "=" and ":": it sends ``data.root=pho`` as three words and appends its choice to the last one. It
  also adds a space after a single choice, which is wrong after ``epochs=`` or ``photos/``.
- zsh completes files only for whole words, not after ``data.root=``.
- the earlier words decide what comes next: a recipe first, then its keys.

Each parameter declares its completion with typer's ``autocompletion``; see ``commands/common.py``.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

#: Characters at which bash splits words and we do not (COMP_WORDBREAKS).
_BREAKS = re.compile(r"[=:]+")


def complete(group: Any, environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Answer a shell's request for completions.

    Args:
        group: the command group, a click or typer object.
        environ: the environment.

    Returns:
        The text to print and the exit status; None where typer answers (PowerShell, installing the scripts).
    """
    asked = environ.get("_EXCITE_COMPLETE", "")
    if asked == "complete_bash":
        return _bash(group, environ["COMP_WORDS"].split("\n"), int(environ["COMP_CWORD"])), 0
    if asked == "complete_zsh":
        return _zsh(group, environ.get("_TYPER_COMPLETE_ARGS", "")), 0
    if asked == "complete_fish":
        found = _fish(group, environ.get("_TYPER_COMPLETE_ARGS", ""))
        asks_whether = environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args"
        return ("", 0 if found else 1) if asks_whether else ("\n".join(found), 0)
    return None


# --- the choices ------------------------------------------------------------------------------------------------------


def choices(group: Any, words: Sequence[str], begun: str) -> list[str]:
    """Completions of the current word; [] where the shell should offer files.

    Args:
        group: the command group.
        words: the words before it, without "excite".
        begun: the part of it typed so far.
    """
    names = list(group.commands)
    command = next((group.commands[word] for word in words if word in names), None)
    if command is not None and hasattr(command, "commands"):  # a command of two words
        return choices(command, words[list(words).index(command.name) + 1 :], begun)
    if command is None:
        options = [option for param in group.params for option in param.opts]
        return _beginning(begun, [*options, "--help"] if begun.startswith("-") else names)
    known = {option: p for p in command.params if not _is_argument(p) for option in [*p.opts, *p.secondary_opts]}
    before, wanted = list(words[list(words).index(command.name) + 1 :]), None
    arguments: list[str] = []
    while before:
        word = before.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            arguments.append(word)
        elif (param := known.get(name)) is not None and not param.is_flag and not equals:
            if not before:
                wanted = param
            else:
                before.pop(0)
    if wanted is not None:
        return _values(command, wanted, arguments, begun)
    name, equals, text = begun.partition("=")
    if equals and begun.startswith("-"):
        param = known.get(name)
        return [] if param is None else [f"{name}={each}" for each in _values(command, param, arguments, text)]
    if begun.startswith("-"):
        return _beginning(begun, [*known, "--help"])
    places = [p for p in command.params if _is_argument(p)]
    for at, param in enumerate(places):
        if param.nargs != 1 or at == len(arguments):
            return _values(command, param, arguments[at:], begun)
    return []


def _is_argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def _beginning(begun: str, names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(begun)]


def _values(command: Any, param: Any, before: Sequence[str], begun: str) -> list[str]:
    """What a parameter's own completion function offers; its context holds the earlier arguments."""
    context = command.context_class(command, info_name=command.name, resilient_parsing=True)
    context.args = list(before)
    return [item.value for item in param.shell_complete(context, begun) if getattr(item, "type", "plain") == "plain"]


def files(begun: str) -> list[str]:
    """Files and folders that start with ``begun``; folders end with "/", so that their contents can follow."""
    folder, _, name = begun.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(f"{folder}/" if "/" in begun else ".")), key=lambda e: e.name)
    except OSError:
        return []
    start = f"{folder}/" if "/" in begun else ""
    shown = [e for e in entries if e.name.startswith(name) and (name.startswith(".") or not e.name.startswith("."))]
    return [f"{start}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown]


# --- the shells -------------------------------------------------------------------------------------------------------


def _unquoted(word: str) -> str:
    for end in ("", '"', "'"):
        try:
            return "".join(shlex.split(word + end))
        except ValueError:
            continue
    return word


def _bash(group: Any, raw: Sequence[str], at: int) -> str:
    """Bash: one choice per line, without the part before the last "=" or ":" if bash split the word there."""
    words: list[str] = []
    cut = ""
    glue = False
    for word in list(raw[: at + 1]) + [""] * (at + 1 - len(raw)):
        if _BREAKS.fullmatch(word) and len(words) > 1:
            words[-1] += word
            cut, glue = words[-1], True
        elif glue:
            words[-1] += _unquoted(word)
            glue = False
        else:
            words.append(_unquoted(word))
            cut = ""
    *before, begun = words[1:] or [""]
    found = choices(group, before, begun)
    if not found and not cut and "=" in begun and not begun.startswith("-"):  # COMP_WORDBREAKS without "="
        key, _, text = begun.partition("=")
        found = [f"{key}={name}" for name in files(text)]
    if len(found) == 1 and found[0].endswith(("=", "/")):  # bash would add a space after a single choice: give it two
        found = _two(group, before, found[0])
    return "\n".join(each.removeprefix(cut) for each in found)


def _two(group: Any, before: Sequence[str], only: str) -> list[str]:
    """Two or more choices that start with ``only``, so that bash inserts just this common part."""
    following = choices(group, before, only) if only.endswith("=") else files(only)
    return following if len(following) > 1 else [only, f"{only}{'VALUE' if only.endswith('=') else '...'}"]


def _zsh(group: Any, line: str) -> str:
    """Zsh: commands for its completion system on one line, which the script evaluates."""
    before, begun = _words_of(line)
    found = choices(group, before, begun)
    if not found:
        return "compset -P '*='; _files" if "=" in begun else "_files"
    going_on = [each for each in found if each.endswith(("=", "/"))]
    done = [each for each in found if not each.endswith(("=", "/"))]
    parts = [f"compadd -S '' -- {shlex.join(going_on)}"] if going_on else []
    parts += [f"compadd -- {shlex.join(done)}"] if done else []
    return "; ".join(parts)


def _fish(group: Any, line: str) -> list[str]:
    """Fish: one choice per line; fish itself adds no space after "=" and "/"."""
    before, begun = _words_of(line)
    found = choices(group, before, begun)
    if not found and "=" in begun:
        key, _, text = begun.partition("=")
        found = [f"{key}={name}" for name in files(text)]
    return found


def _words_of(line: str) -> tuple[list[str], str]:
    """The words before the current one, without "excite", and the current one."""
    try:
        words = shlex.split(line)
    except ValueError:  # an unclosed quotation
        words = [_unquoted(word) for word in line.split()]
    if not words or line.endswith((" ", "\t", "\n")):
        return words[1:], ""
    return words[1:-1], words[-1] if len(words) > 1 else ""
