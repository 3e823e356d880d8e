"""Data, checkpoints and run folders at s3://, gs://, https:// or any other address that fsspec knows.

Reading goes through a local cache (`stage`); a run is trained in a local folder that a thread keeps copied to its
address (`mirrored`), and fetched from there to go on elsewhere (`fetch_run`). fsspec is imported when an address is
first used.
"""

from excite.storage.address import RemoteError, is_remote, refuse_secrets
from excite.storage.mirror import left_behind, mirrored, upload_missing
from excite.storage.runs import (
    check_writable,
    fetch_run,
    keep_at,
    local_parent,
    local_run,
    open_run,
    uploads_to,
    weights_at,
)
from excite.storage.staging import Staged, expand, in_place, is_staged, local_file, stage

__all__ = [
    "RemoteError",
    "Staged",
    "check_writable",
    "expand",
    "fetch_run",
    "in_place",
    "is_remote",
    "is_staged",
    "keep_at",
    "left_behind",
    "local_file",
    "local_parent",
    "local_run",
    "mirrored",
    "open_run",
    "refuse_secrets",
    "stage",
    "upload_missing",
    "uploads_to",
    "weights_at",
]
