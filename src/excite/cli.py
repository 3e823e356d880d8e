"""The command line: registers the commands, which are defined in ``excite.commands``."""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any

import typer
import typer.core

from excite.children import make_children_safe
from excite.command_help import help_text, leaves
from excite.commands import (
    bench,
    compare,
    convert,
    data,
    explain,
    export,
    gates,
    graft,
    models,
    predict,
    prune,
    recipes,
    report,
    scale,
    sync,
    train,
    twins,
    validate,
    verify,
)
from excite.completion import complete
from excite.errors import ExciteError, UsageError, shown
from excite.hints import Shape, corrected
from excite.leaving import Stopped, ending, leave_quickly, signal_name, stop_on_signals
from excite.runtime.job import is_one_of_several
from excite.text import printable, show, tell, tell_lines


class _Commands(typer.core.TyperGroup):
    """The command group; its usage errors are one sentence."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_text(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # typer's own way prints nothing where help is formatted here
            show(self.get_help(ctx).rstrip())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _as_ours():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _as_ours():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:  # typer would end silently, with the status of Ctrl-C whatever came
                ending()
                raise _interrupted(ctx.invoked_subcommand, error) from None


def _interrupted(command: str | None, error: KeyboardInterrupt) -> ExciteError:
    """One sentence on what a command that was stopped keeps, and how to go on. Exit status 128 + the signal."""
    from excite.training.stop import Interrupted

    number = error.number if isinstance(error, Stopped) else int(signal.SIGINT)
    kept = _KEPT.get(command or "", "nothing half-written is left; to start over, repeat the command")
    return Interrupted(f"stopped by {signal_name(number)}: {kept}", number)


#: What a stopped command keeps and how to go on, where it is more than nothing. A training that has begun, and the
#: experiments of twins, say it themselves.
_KEPT = {
    "train": "the training had not begun, or was over; a run that was named goes on with: excite train --resume RUN",
    "twins": "finished runs are kept; to go on, repeat the command",
    "report": "the page was not written, and an older one is as it was; to start over, repeat the command",
    "pack": "finished shards are kept; to go on, repeat the command",
    "sync": "what was uploaded stays; to go on, repeat the command",
    **dict.fromkeys(
        ("convert", "graft", "prune", "export", "explain", "compare", "predict", "check"),
        "nothing was written, and what was there before is unchanged; to start over, repeat the command",
    ),
}


class _Command(typer.core.TyperCommand):
    """A command whose help fits the terminal, and whose arguments are checked just before it runs.

    The checks (see :mod:`excite.commands.beforehand`) do not run during parsing, so that tests can parse the commands
    in the documentation anywhere.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checks = [(parameter, parameter.callback) for parameter in self.params if parameter.callback is not None]
        for parameter, _ in self._checks:
            parameter.callback = None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_text(self, ctx))

    def invoke(self, ctx: Any) -> Any:
        for parameter, check in self._checks:
            check(ctx, parameter, ctx.params[parameter.name])
        return super().invoke(ctx)


@contextmanager
def _as_ours() -> Iterator[None]:
    """Turn usage errors into one sentence, instead of click's panel, from which no line can be copied."""
    try:
        yield
    except Exception as error:  # a ClickException: typer bundles a private copy of click
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        context = getattr(error, "ctx", None)
        path = "excite" if getattr(context, "parent", None) is None else _path(context)
        text = printable(error.format_message()).split(" (Possible options")[0].rstrip(".")
        examples = re.findall(r"(?m)^ +(excite .*)", getattr(getattr(context, "command", None), "help", None) or "")
        missing = type(error).__name__ == "MissingParameter" and examples
        otherwise = f"for example: {examples[0]}" if missing else f"`{path} --help` shows what there is"
        raise UsageError(f"{text[:1].lower()}{text[1:]}", otherwise) from None


def _path(context: Any) -> str:
    """``excite COMMAND``, or ``excite GROUP COMMAND``."""
    words: list[str] = []
    while context.parent is not None:
        words.insert(0, context.info_name)
        context = context.parent
    return " ".join(["excite", *words])


app = typer.Typer(
    name="excite",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, measure and ship image classifiers with Squeeze-and-Excitation and Gather-Excite gates.",
    epilog="Start with: excite train digits-seresnet20",
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: The groups of ``excite --help``, in order. A command of several words is (name, help, its sub-commands).
_GROUPS: dict[str, tuple[Callable[..., None] | tuple[str, str, tuple[Callable[..., None], ...]], ...]] = {
    "Train": (train.train, twins.twins, sync.sync),
    "Measure": (validate.validate, compare.compare, bench.bench, verify.verify),
    "Understand": (explain.explain, report.report),
    "Ship": (predict.predict, export.export, prune.prune),
    "Bring in": (("data", "Check and pack data sets.", (data.check, data.pack)), convert.convert, graft.graft),
    "Plan": (recipes.recipes, models.models, gates.gates, scale.scale),
}
for _group, _functions in _GROUPS.items():
    for _function in _functions:
        if callable(_function):
            app.command(cls=_Command, rich_help_panel=_group)(_function)
            continue
        _name, _help, _parts = _function
        _several = typer.Typer(name=_name, cls=_Commands, help=_help)
        _several.callback()(lambda: None)  # one sub-command alone would become the command itself
        for _part in _parts:
            _several.command(cls=_Command)(_part)
        app.add_typer(_several, rich_help_panel=_group)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"excite {metadata.version('excite')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback of an internal error, escaped like all output: names in it come from users."""
    tell_lines("".join(traceback.format_exception(kind, error, trace)))


#: What a file system refuses whatever the program does: these need no traceback.
_REFUSALS = {
    getattr(errno, name)
    for name in ("ENAMETOOLONG", "EACCES", "EROFS", "ENOSPC", "EDQUOT", "EIO", "ELOOP")
    if hasattr(errno, name)  # not all of them exist on Windows
}


_OF_A_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EIO)


def _refused(error: Exception) -> Exception:
    """An error of the file system that names its file, as one sentence; any other error as it is."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return error
    if error.filename is None and error.errno in _OF_A_DISK:  # a stream: standard output that goes to a full disk
        return ExciteError(f"the output could not be written: {(error.strerror or type(error).__name__).lower()}")
    if error.filename is None:
        return error
    return ExciteError(f"{shown(os.fsdecode(error.filename))}: {(error.strerror or type(error).__name__).lower()}")


#: What makes a command need less memory.
_SMALLER = {
    "train": "give smaller train.batch_size and eval.batch_size",
    "twins": "give smaller train.batch_size and eval.batch_size",
    "validate": "give a smaller --batch-size",
    "predict": "give a smaller --batch-size, or fewer images",
    "bench": "give a smaller --batch or --image-size",
    **dict.fromkeys(("explain", "report", "export"), "give a smaller --images"),
    "prune": "give a smaller --calibration and --batch",
}


def _out_of_memory(error: Exception) -> Exception:
    """A failed allocation that nothing nearer to it has explained, as one sentence; any other error as it is."""
    if isinstance(error, ExciteError) or not isinstance(error, MemoryError | RuntimeError):
        return error
    from excite.runtime.device import is_out_of_memory, needed_memory

    if not is_out_of_memory(error):
        return error
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    mend = _SMALLER.get(command, "end other programs that need it")
    return ExciteError(f"there is not enough memory{needed_memory(error)}; {mend}, or use a machine with more")


def _with_line_to_type(error: ExciteError) -> ExciteError:
    """The error, ending with the corrected command line if one is known."""
    line = corrected(sys.argv[1:], _shapes(sys.argv[1:]), error.instead)
    if line is None:
        error.args = (f"{error}; {error.otherwise}",) if isinstance(error, UsageError) else error.args
        return error
    text = str(error).removesuffix(".")
    error.args = (f"{text}{'' if text.endswith('?') else '.'} Type: {line}",)
    return error


def _shapes(words: Sequence[str]) -> dict[str, Shape]:
    """The options and arguments of each command, from its signature; ``bench`` with ``--data`` takes a recipe."""
    from excite.recipe import override_flags, override_keys

    keys, flags = override_keys(), frozenset(override_flags())
    found = {}
    for name, command in leaves(typer.main.get_command(app)).items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = {o: not p.is_flag for p in command.params if p not in arguments for o in [*p.opts, *p.secondary_opts]}
        metavars = " ".join(p.metavar or "" for p in arguments)
        taken = keys if "RECIPE" in metavars or ("--data" in words and name == "bench") else []
        if "KEY=VALUE" in metavars and not taken:
            taken = [key for key in keys if key.startswith(("data.", f"{name}."))]
        found[name] = Shape(
            name,
            {**options, "-h": False, "--help": False},
            taken,
            run=metavars.startswith(("RUN", "[RUN", "[ROOT|RUN", "SOURCE")),
            images="IMAGE" in metavars,
            all_keys=keys,
            flags=flags,
        )
    return found


def main() -> None:
    """Entry point. A user's mistake is printed as one sentence on standard error; the exit status is then non-zero."""
    leave_quickly()
    make_children_safe()
    sys.excepthook = _show_traceback
    stop_on_signals()
    if "_EXCITE_COMPLETE" in os.environ and (answer := complete(typer.main.get_command(app), os.environ)) is not None:
        print(answer[0])
        sys.exit(answer[1])
    try:
        app()
    except Exception as raised:
        ending()
        error = _out_of_memory(_refused(raised))
        if is_one_of_several():
            from excite.training.launch import tell_and_end

            tell_and_end(error)
        if isinstance(error, BrokenPipeError):  # `excite models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if not isinstance(error, ExciteError):
            raise
        if not getattr(error, "exit_status", None):
            error = _with_line_to_type(error)
        # A run that was asked to stop has its own exit status, and is not an error.
        status = getattr(error, "exit_status", None)
        tell(error if status else f"error: {error}")
        sys.exit(status or (2 if isinstance(error, UsageError) else 1))
