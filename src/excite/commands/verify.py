"""``excite verify``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.choices import parse_duration
from excite.commands.beforehand import begin
from excite.commands.common import Json, complete_run
from excite.errors import ExciteError
from excite.text import print_json, tell

if TYPE_CHECKING:
    from excite.trained.verify import Verified


def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Compare the files only; train nothing again.")
    ] = False,
    time: Annotated[
        str,
        typer.Option(
            metavar="20m",
            help="Train nothing again that took longer than this when the run was trained: 90s, 20m, 1h30m.",
        ),
    ] = "10m",
    sign: Annotated[
        bool, typer.Option("--sign", help="Write an OpenSSF signature (model.sig) with the private key.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pem", help="Check the signature with this public key; with --sign, the private key."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify that a run's files are what was written, and that training a stretch of it again gives the same weights.

    The stretch is the shortest between two of its checkpoints, or from the start to its only one. How long it is, is
    said first. It is trained in a temporary folder: the run is not changed.

    Examples:

      excite verify runs/cifar10-seresnet20-20260101-120000

      excite verify runs/my-run --files-only

      excite verify runs/my-run --time 2h

      excite verify runs/my-run --sign --key private.pem
    """
    if sign and key is None:
        raise ExciteError(f"--sign needs a key: excite verify {run} --sign --key PRIVATE.pem")
    parse_duration(time, "--time")
    from excite.storage import check_run_folder
    from excite.trained.signature import check_key

    check_run_folder(run)
    if key is not None:
        check_key(key)
    begin(f"verifying {run}")
    from excite.trained.signature import check_signature
    from excite.trained.signature import sign as write_signature
    from excite.trained.verify import verify as run_verification

    found = run_verification(run, files_only=files_only, time=time, say=tell)
    if key is not None and not sign:
        check_signature(found.run, key)
    if as_json:
        print_json({**_as_json(found), "signature": "matches" if key is not None and not sign else None})
    else:
        _show(found, None if sign else key)
    if not found.good:
        raise ExciteError(f"{found.run} is not what was written, or not what its recipe gives: see above")
    if sign and key is not None:
        tell(f"signed: {write_signature(found.run, key)}")


def _as_json(found: "Verified") -> dict[str, object]:
    from dataclasses import asdict

    stretch = None if found.stretch is None else asdict(found.stretch)
    checkpoints = {str(step): why or "good" for step, why in found.checkpoints.items()}
    return {
        "run": str(found.run),
        "good": found.good,
        "checkpoints": checkpoints,
        "wrong": found.wrong,
        "trained_again": stretch,
        "notes": found.notes,
    }


def _show(found: "Verified", key: Path | None) -> None:
    from excite.console import Display

    display = Display()
    good = [step for step, why in found.checkpoints.items() if not why]
    if good:
        display.message(f"checkpoints  {len(good)} good (steps {', '.join(map(str, good))}): every file is as written")
    for step, why in found.checkpoints.items():
        if why:
            display.message(f"checkpoint of step {step}: NOT GOOD: {why}")
    for line in found.wrong:
        display.message(f"NOT GOOD: {line}")
    stretch = found.stretch
    if stretch is not None and not stretch.differing:
        again = f"steps {stretch.first + 1} to {stretch.last} in {stretch.seconds:.0f} s"
        display.message(f"trained again  {again}: weights and optimiser state are equal, bit for bit")
    elif stretch is not None:
        display.message(
            f"trained again  steps {stretch.first + 1} to {stretch.last}: NOT EQUAL: {len(stretch.differing)} tensors "
            f"differ, the first is {stretch.differing[0]}, by at most {stretch.largest:.2g} of a tensor's largest value"
        )
    for line in found.notes:
        display.message(f"note: {line}")
    if key is not None:
        display.message(f"signature  model.sig matches {key}")
