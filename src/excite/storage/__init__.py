"""Data, checkpoints and run folders at s3://, gs://, https:// or any other address that fsspec knows.

Reading goes through a local cache (`stage`). A run is trained in a local folder that a thread mirrors to its address
(`mirrored`), and can be fetched from there to resume elsewhere (`fetch_run`). fsspec is imported when an address is
first used, and so is everything else that reading a recipe does not need.
"""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.storage.address import RemoteError, is_remote, refuse_secrets
    from excite.storage.mirror import left_behind, mirrored, upload_missing
    from excite.storage.runs import (
        check_run_folder,
        check_target,
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

_HOME = {
    "RemoteError": "address",
    "Staged": "staging",
    "check_target": "runs",
    "check_run_folder": "runs",
    "check_writable": "runs",
    "expand": "staging",
    "fetch_run": "runs",
    "in_place": "staging",
    "is_remote": "address",
    "is_staged": "staging",
    "keep_at": "runs",
    "left_behind": "mirror",
    "local_file": "staging",
    "local_parent": "runs",
    "local_run": "runs",
    "mirrored": "mirror",
    "open_run": "runs",
    "refuse_secrets": "address",
    "stage": "staging",
    "upload_missing": "mirror",
    "uploads_to": "runs",
    "weights_at": "runs",
}

__all__ = [
    "RemoteError",
    "Staged",
    "check_run_folder",
    "check_target",
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

__getattr__ = lazily(__name__, {name: f"{__name__}.{module}" for name, module in _HOME.items()})
