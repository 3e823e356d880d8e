"""Addresses of remote files: recognising them, refusing secrets in them, and the common error class."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from excite.errors import ExciteError, first_line, shown

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(::|://)")
#: Query parameters that sign an address: anybody who reads them can use it.
_SIGNATURES = re.compile(
    r"(?i)^(x-amz-(signature|credential|security-token)|x-goog-(signature|credential)|signature|sig|token|access_?key.*)$"
)
#: Stores in which a file is uploaded and becomes visible as a whole, and folders are only names.
OBJECT_STORES = frozenset(
    ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "oss", "obs", "tos", "r2", "oci", "memory")
)
READ_ONLY = frozenset(("http", "https"))


class RemoteError(ExciteError):
    """An operation at a remote address failed.

    ``lasting``: trying again will not help until somebody fixes it. ``missing``: there is nothing at the address.
    """

    def __init__(self, message: str, lasting: bool, missing: bool = False) -> None:
        super().__init__(message)
        self.lasting, self.missing = lasting, missing


@dataclass(frozen=True)
class Remote:
    """A file system, a path in it as fsspec writes it (``bucket/folder/name``), and the address as given."""

    fs: Any
    path: str
    url: str

    @property
    def protocol(self) -> str:
        """The scheme, in fsspec's preferred spelling."""
        protocol: str | tuple[str, ...] = self.fs.protocol
        return protocol if isinstance(protocol, str) else protocol[0]

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine (``file://``)."""
        return self.protocol == "file"

    @property
    def is_object_store(self) -> bool:
        """Whether files appear there atomically."""
        return self.protocol in OBJECT_STORES

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def at(self, relative: str) -> str:
        """The path of ``relative`` below this one."""
        return f"{self.path.rstrip('/')}/{relative}"


def is_remote(source: object) -> bool:
    """Whether ``source`` is an address (``s3://bucket/name``, ``zip://...::s3://...``) rather than a local path."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def parts_of(url: str) -> SplitResult:
    """``urlsplit`` of an address. Raises ExciteError for a text that is none, such as ``http://[``."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ExciteError(f"{shown(url)} is no address: {first_line(error)}") from None


def refuse_secrets(url: str) -> None:
    """Raise ExciteError if an address contains a password or a signature: recipes and logs would store it."""
    for part in url.split("::"):
        split = parts_of(part)
        if split.password is not None or (split.username and "://" in part and split.scheme not in ("abfs", "abfss")):
            what = "a user name or password"
        elif any(_SIGNATURES.match(key) for key, _ in parse_qsl(split.query, keep_blank_values=True)):
            what = "a signature or token"
        else:
            continue
        raise ExciteError(
            f"the address {without_secrets(url)} contains {what}, which recipes and logs would store: give credentials "
            "through the environment (AWS_ACCESS_KEY_ID ...) or fsspec's configuration (docs/storage.md)"
        )


def without_secrets(url: str) -> str:
    """The address without user name, password and query, for messages."""
    return "::".join(re.sub(r"\?.*$", "", re.sub(r"://[^/]*@", "://", part)) for part in url.split("::"))
