"""``excite sync``"""

from typing import Annotated

import typer

from excite.commands.common import Json, complete_run
from excite.text import counted, print_json, printable, show, tell


def sync(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)],
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="Address of its copy; the previous one if omitted.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload whatever is missing from the remote copy of a run, for example after a lost connection.

    Examples:

      excite sync runs/cifar10-seresnet20-20260101-120000

      excite sync runs/my-run s3://bucket/runs/my-run
    """
    from excite.storage import upload_missing

    address, sent = upload_missing(run, url, tell)
    if as_json:
        print_json({"run": run, "url": address, "uploaded": sent})
    else:
        show(printable(f"{address} has all of {run}: {counted(sent, 'file')} uploaded"))
