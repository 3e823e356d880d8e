"""The command line: registers the commands, whose files hold all the rest."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any

import typer
import typer.core

from excite.children import make_children_safe
from excite.commands import (
    bench,
    compare,
    convert,
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
)
from excite.errors import ExciteError
from excite.leaving import leave_quickly
from excite.runtime.job import is_one_of_several
from excite.text import printable, tell, tell_lines


class _Commands(typer.core.TyperGroup):
    """Commands whose usage errors, which repeat what was typed, show control characters and do not send them."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _shown_as_typed():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _shown_as_typed():
            return super().invoke(ctx)


class _Command(typer.core.TyperCommand):
    """A command whose words are checked when it is run (see :mod:`excite.commands.beforehand`), all of them known; not
    while they are parsed, so that a line of the documentation parses wherever it is read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checks = [(parameter, parameter.callback) for parameter in self.params if parameter.callback is not None]
        for parameter, _ in self._checks:
            parameter.callback = None

    def invoke(self, ctx: Any) -> Any:
        for parameter, check in self._checks:
            check(ctx, parameter, ctx.params[parameter.name])
        return super().invoke(ctx)


@contextmanager
def _shown_as_typed() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a ClickException: typer has a click of its own, private
        if hasattr(error, "format_message") and hasattr(error, "message"):
            error.message = printable(error.message)
        raise


app = typer.Typer(
    name="excite",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, measure and ship image classifiers with Squeeze-and-Excitation and Gather-Excite gates.",
    epilog="Start with: excite train digits-seresnet20",
)

#: In the order of ``excite --help``.
for _command in (
    train.train,
    twins.twins,
    validate.validate,
    predict.predict,
    sync.sync,
    bench.bench,
    scale.scale,
    convert.convert,
    graft.graft,
    export.export,
    prune.prune,
    explain.explain,
    compare.compare,
    report.report,
    models.models,
    gates.gates,
    recipes.recipes,
):
    app.command(cls=_Command)(_command)


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
    """A fault of ours, with its place; the names in it are no less other people's."""
    tell_lines("".join(traceback.format_exception(kind, error, trace)))


def main() -> None:
    """Entry point: a user's mistake becomes one sentence on standard error and a non-zero exit status."""
    leave_quickly()
    make_children_safe()
    sys.excepthook = _show_traceback
    try:
        app()
    except Exception as error:
        if is_one_of_several():
            from excite.training.launch import tell_and_end

            tell_and_end(error)
        if isinstance(error, BrokenPipeError):  # `excite models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if not isinstance(error, ExciteError):
            raise
        # A run that was asked to stop has an exit status of its own, and made no error.
        status = getattr(error, "exit_status", None)
        tell(error if status else f"error: {error}")
        sys.exit(status or 1)
