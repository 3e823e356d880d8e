"""The text of ``excite COMMAND --help``: plain text that fits the terminal and never cuts a name or an example.

Works with objects of click and of typer's own copy of it. Of a parameter, only ``opts``, ``secondary_opts``,
``metavar``, ``name``, ``nargs``, ``required``, ``default``, ``help`` and ``is_flag`` are used.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from excite.text import cells, columns, wrapped

#: Widths in columns: without a terminal; the most that is easy to read; the most for the left column of a list.
_PIPE, _WIDEST, _LEFT = 80, 110, 30


def help_text(command: Any, context: Any) -> str:
    """The help text of a command or of the command group, as wide as the terminal allows."""
    width = columns(sys.stdout)
    bold = width is not None and "NO_COLOR" not in os.environ
    width = _PIPE if width is None else min(width, _WIDEST)

    def heading(text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if bold else text

    params = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    arguments, options = [p for p in params if _is_argument(p)], [p for p in params if not _is_argument(p)]
    groups = list(_groups(command, context))
    longest = max((cells(name) for _, rows in groups for name, _ in rows), default=0)
    lines = [*_usage(command, context.command_path, arguments, width), "", *_prose(command.help or "", width, heading)]
    for title, rows in (
        ("Arguments", [(argument_name(p), _described(p)) for p in arguments]),
        ("Options", [(_option_names(p), _described(p)) for p in options]),
        *groups,
    ):
        if rows:
            lines += ["", heading(f"{title}:"), *_listed(rows, width, longest if title in dict(groups) else 0)]
    if command.epilog:
        lines += ["", *_folded_command(command.epilog, width)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def leaves(group: Any) -> dict[str, Any]:
    """All commands below a group: name -> command, with the names of the groups between, such as ``data check``."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        below = {f"{name} {each}": c for each, c in leaves(command).items()} if hasattr(command, "commands") else {}
        found |= below or {name: command}
    return found


def _is_argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def usage(command: Any, path: str) -> str:
    """The usage of a command, on one line."""
    arguments = [p for p in command.params if _is_argument(p)]
    tail = ["COMMAND ..."] if hasattr(command, "commands") else [argument_name(p) for p in arguments]
    options = ["[OPTIONS]"] if any(not _is_argument(p) for p in command.params) else []
    return " ".join([path, *options, *tail])


def _usage(command: Any, path: str, arguments: Sequence[Any], width: int) -> list[str]:
    words = usage(command, path).split(" ")
    start = f"Usage: {path}"
    return _filled(start, words[len(path.split(" ")) :], width, " " * len("Usage: "))


def _filled(start: str, words: Sequence[str], width: int, margin: str, end: str = "") -> list[str]:
    lines = [start]
    for word in words:
        if cells(f"{lines[-1]} {word}{end}") > width and lines[-1].strip():
            lines[-1] += end
            lines.append(f"{margin}{word}")
        else:
            lines[-1] += f" {word}"
    return lines


def argument_name(param: Any) -> str:
    """The name of an argument in the usage line."""
    name = param.metavar or (param.name or "").upper()
    if param.nargs != 1 and not name.endswith("..."):
        name += "..."
    return name if param.required or name.startswith("[") else f"[{name}]"


def _option_names(param: Any) -> str:
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names += " / " + ", ".join(param.secondary_opts)
    if param.is_flag:
        return names
    if param.metavar:
        return f"{names} {param.metavar}"
    number = isinstance(param.default, int | float) and not isinstance(param.default, bool)
    return f"{names} {'N' if number else max(param.opts, key=len).lstrip('-').upper()}"


def _described(param: Any) -> str:
    text, default = param.help or "", param.default
    if getattr(param, "is_flag", False):
        if param.secondary_opts and isinstance(default, bool):
            text += f"  [default: {param.opts[0] if default else param.secondary_opts[0]}]"
    elif param.show_default and not (default is None or callable(default) or default in ((), [])):
        text += f"  [default: {default}]"
    return text + ("  [required]" if param.required and not _is_argument(param) else "")


def _groups(command: Any, context: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The groups of commands, in order: (title, [(name, first paragraph of its help)])."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        each = command.get_command(context, name)
        first = (each.help or "").split("\n\n")[0].replace("\n", " ")
        found.setdefault(getattr(each, "rich_help_panel", None) or "Commands", []).append((name, first))
    yield from found.items()


def _listed(rows: Sequence[tuple[str, str]], width: int, least: int) -> list[str]:
    """Names in a column at least ``least`` wide, with their descriptions to the right, or below a long name."""
    left = min(max(least, *(cells(name) for name, _ in rows)), _LEFT, width // 2 - 4)
    lines = []
    for name, text in rows:
        said = wrapped(text, width - left - 4).split("\n")
        if cells(name) <= left:
            lines.append(f"  {name}{' ' * (left - cells(name))}  {said.pop(0)}")
        else:
            lines += [f"  {name}"]
        lines += [f"{' ' * (left + 4)}{part}" for part in said]
    return lines


def _prose(text: str, width: int, heading: Any) -> Iterator[str]:
    """Paragraphs. Each example has its own line, folded so that a shell still accepts it."""
    examples = False
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        if paragraph.startswith((" ", "\t")):
            for line in paragraph.split("\n"):
                yield from (f"  {part}" for part in _folded_command(line.strip(), width - 2))
            examples = True
            continue
        if number or examples:
            yield ""
        one = " ".join(line.strip() for line in paragraph.split("\n"))
        for part in [heading(one)] if one == "Examples:" else wrapped(one, width).split("\n"):
            yield from [part] if cells(part) <= width or one == "Examples:" else _folded_command(part, width)


def _folded_command(line: str, width: int) -> list[str]:
    if cells(line) <= width:
        return [line]
    first, *words = line.split(" ")
    return _filled(first, words, width, "    ", " \\")
