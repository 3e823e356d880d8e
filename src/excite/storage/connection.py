"""Connects to an address: fsspec's file system, retries, and errors as one sentence."""

import os
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from excite.errors import ExciteError, first_line, install_line, nearest
from excite.storage.address import READ_ONLY, Remote, RemoteError, refuse_secrets, without_secrets
from excite.storage.patience import waiting_for
from excite.storage.stalled import session_options
from excite.storage.web import client

T = TypeVar("T")

#: The schemes whose packages are in the extra "remote".
_REMOTE = ("s3", "s3a", "http", "https")
#: What to install for other common schemes; fsspec names the rest itself.
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), "adlfs"),
    "oss": "ossfs",
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}
_NO_CREDENTIALS = frozenset(
    ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "SSOTokenLoadError")
)
_SETTINGS = ("AWS_", "FSSPEC_")
TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 0.5, 60.0  # of one request; seconds
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60  # until a store accepts a connection, and sends the next bytes
GIVE_UP_SECONDS = 150.0  # no further try after this time: a store that accepts and never answers costs three minutes


def connect(url: str) -> Remote:
    """The file system of an address. Nothing is sent yet.

    Raises:
        ExciteError: the address holds credentials, its scheme is unknown, or a package for it is not installed.
    """
    refuse_secrets(url)
    scheme = re.split(r"::|://", url, maxsplit=1)[0].lower()
    if re.fullmatch(r"[^:]+://[/]*", url):
        raise RemoteError(f"{url} has no bucket or folder: write {scheme}://bucket/folder", True)
    import fsspec

    try:
        if scheme in ("s3", "s3a") and "::" not in url:
            fs = _s3(os.getpid(), tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(_SETTINGS))))
            path = fs._strip_protocol(url)
        else:
            with waiting_for(url):  # an archive at an address is opened here
                fs, path = fsspec.core.url_to_fs(url, **_options(scheme), **_bounds(url))
    except ImportError:
        package = _PACKAGES.get(scheme, "what `python -c \"import fsspec; fsspec.filesystem('" + scheme + "')\"` names")
        line = install_line("remote") if scheme in _REMOTE else f"pip install {package}"
        raise RemoteError(f"{url} needs a package that is not installed: {line}", True) from None
    except ValueError as error:
        hint = nearest(scheme, ["s3", "gs", "abfs", "https", "file", "memory", "sftp"])
        raise RemoteError(f"{url} cannot be used: {_line(error)}{hint}", True) from None
    except Exception as error:
        raise explained(error, url) from error
    return Remote(fs, path, url.rstrip("/"))


@lru_cache(maxsize=4)
def _s3(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """The S3 file system for these environment settings. Cached, because creating one takes a third of a second."""
    import fsspec

    options = _options("s3")
    fs = fsspec.filesystem("s3", **options)
    if "config_kwargs" in options:
        fs.retries = 1  # s3fs would try five times what botocore tries: a silent store would cost a quarter of an hour
    return fs


def forget_connections() -> None:
    """Reconnect next time, because credentials may have been renewed."""
    _s3.cache_clear()


def _options(scheme: str) -> dict[str, Any]:
    """Options for fsspec besides its configuration: listings are not cached, and requests time out."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        from fsspec.config import conf

        # `retried` tries again, with longer waits and a limit to the whole; each layer below would multiply the time.
        given = {k: v for protocol in ("s3", "s3a") for k, v in conf.get(protocol, {}).items()}
        if "config_kwargs" not in given:
            retries = {"total_max_attempts": 1, "mode": "standard"}
            times = {"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS}
            options["config_kwargs"] = {**times, "retries": retries, **session_options(ANSWER_SECONDS)}
    return options


def _bounds(url: str) -> dict[str, Any]:
    """Options for fsspec to access the web, also below another scheme (``zip://...::https://...``)."""
    first, *below = [part.partition("://")[0].lower() for part in url.split("::")]
    bounds: dict[str, Any] = {scheme: {"get_client": client} for scheme in below if scheme in READ_ONLY}
    return {**bounds, **({"get_client": client} if first in READ_ONLY else {})}


def explained(error: BaseException, url: str) -> RemoteError:
    """An error of fsspec or of a library below it, as one sentence."""
    if isinstance(error, RemoteError):
        return error
    if isinstance(error, ExciteError):
        return RemoteError(str(error), True)
    shown = without_secrets(url)
    chain = list(_chain(error))
    names = {cls.__name__ for one in chain for cls in type(one).__mro__}
    reason = _line(error)
    if any(isinstance(one, ImportError) for one in chain):
        return RemoteError(f"{shown} needs a package that is not installed: {reason}", True)
    if names & _NO_CREDENTIALS:
        return RemoteError(
            f"{shown}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or "
            "FSSPEC_S3_ANON=true for a public bucket",
            True,
        )
    if "PermissionError" in names:
        return RemoteError(
            f"{shown}: access was denied ({reason}); check the credentials and the bucket's policy", True
        )
    unreachable = RemoteError(f"{shown} could not be reached ({reason}); check the network and the endpoint", False)
    if any(
        re.search("Timeout|Connect|Disconnect", name) for name in names
    ):  # fsspec calls a dead web server "not found"
        return unreachable
    if "FileNotFoundError" in names:
        what = "there is no such bucket" if "bucket" in reason.lower() else "there is nothing at this address"
        return RemoteError(f"{shown}: {what}; check its spelling", True, missing=True)
    if any(isinstance(one, OSError) for one in chain):
        return unreachable
    return RemoteError(f"{shown}: {reason}", False)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(error: BaseException) -> str:
    """The error's first line, without secrets from the environment."""
    text = first_line(error)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        secret = os.environ.get(name)
        text = text.replace(secret, "***") if secret else text
    return text


def retried(action: Callable[[], T], url: str) -> T:
    """Run ``action``, retrying with growing pauses if the connection fails; a line is printed while it takes long.

    Raises:
        RemoteError: all tries fail, or nothing has come for ``GIVE_UP_SECONDS``.
    """
    with waiting_for(url):  # all tries together: each alone may end before a line is due
        return _retried(action, url)


def _retried(action: Callable[[], T], url: str) -> T:
    begun = time.monotonic()
    for attempt in range(TRIES):
        try:
            return action()
        except Exception as error:
            problem = explained(error, url)
            if problem.lasting or attempt + 1 == TRIES or time.monotonic() - begun > GIVE_UP_SECONDS:
                raise problem from error
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
    raise AssertionError("unreachable")
