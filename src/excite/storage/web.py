"""Downloads from the web with limits on size and time, whatever the server does.

A server may announce one size and send another, send forever, send a gigabyte of zeros in a megabyte of gzip, or a byte
per second. aiohttp, below fsspec, reads whatever comes. Here, a page is read up to a maximum size, and a file piece by
piece with a minimum rate. At most ten redirects are followed (aiohttp's own limit), and never from https to http.
"""

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excite.storage.address import Remote, RemoteError, without_secrets

#: Largest page of links, or other answer that is not a file, in bytes.
MOST_OF_A_PAGE = 64 << 20
#: Largest file whose size the server does not announce, in bytes.
MOST_OF_UNKNOWN = 4 << 30
#: Minimum number of bytes in this many seconds; at that rate, a megabyte takes eight minutes.
SLOWEST_BYTES, SLOWEST_SECONDS = 60_000, 30.0
ANSWER_SECONDS = 30.0  # for the headers, and for a whole page
PIECE = 1 << 20  # bytes passed on at a time


class TooMuch(RemoteError):
    """A server sends more than allowed; what it has sent so far is discarded."""


async def client(**options: Any) -> Any:
    """The session for fsspec: aiohttp's, with limits."""
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            """The whole body of a page (not of a file)."""
            if self._body is None:
                parts, size = [], 0
                async for part in self.content.iter_any():
                    parts.append(part)
                    size += len(part)
                    if size > MOST_OF_A_PAGE:
                        self.close()
                        raise RemoteError(
                            f"{without_secrets(str(self.url))}: the page does not end after "
                            f"{MOST_OF_A_PAGE / 1e6:,.0f} MB; give the address of a file",
                            True,
                        )
                self._body = b"".join(parts)
            return self._body

    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=10, sock_read=SLOWEST_SECONDS)
    return aiohttp.ClientSession(**{"timeout": timeout, "response_class": Bounded, **options})


def pieces(remote: Remote, path: str, start: int, size: int | None) -> Iterator[bytes]:
    """The bytes of a file on a web server from byte ``start`` on, in pieces of about PIECE bytes.

    Args:
        remote: a remote of https or http.
        path: the file's address.
        start: number of bytes already there; skipped if the server does not support ranges.
        size: the announced size; None if unknown.

    Raises:
        RemoteError: the server sends more than it announced (or more than is reasonable for an unknown size), or sends
            too slowly.
        FileNotFoundError: the file is gone, or has fewer than ``start`` bytes.
        OSError, aiohttp.ClientError: the connection failed.
    """
    from fsspec.asyn import sync

    shown, loop = without_secrets(path), remote.fs.loop
    response = sync(loop, _answer, remote.fs, path, start)
    try:
        skip = _position(response, path, start)
        most = MOST_OF_UNKNOWN - start if size is None else size - start
        pace, received = _Pace(shown), 0
        while piece := sync(loop, _piece, response):
            pace.got(len(piece))
            piece, skip = piece[skip:], max(0, skip - len(piece))
            received += len(piece)
            if received > most:
                raise TooMuch(_too_much(shown, size), True)
            if piece:
                yield piece
    finally:
        sync(loop, _close, response)


def _too_much(shown: str, size: int | None) -> str:
    if size is not None:
        return f"{shown} sends more than the {size:,} bytes that it announced; nothing was kept"
    return (
        f"{shown} does not announce its size and does not end after {MOST_OF_UNKNOWN / 1e9:,.1f} GB; nothing was "
        "kept: download it by other means, and give the path"
    )


def check_room(place: Path, shown: str, wanted: int) -> None:
    """Raise RemoteError if ``wanted`` more bytes would fill the disk."""
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise RemoteError(
            f"the disk is too full for {shown}: {free / 1e9:.2f} GB are free at {place}; free some space or set "
            "EXCITE_CACHE to a larger disk",
            True,
        )


async def _answer(fs: Any, path: str, start: int) -> Any:
    import aiohttp

    session = await fs.set_session()
    options = {**fs.kwargs}
    headers = {**(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SLOWEST_SECONDS)
    async with asyncio.timeout(ANSWER_SECONDS):
        return await session.get(fs.encode_url(path), **{**options, "headers": headers, "timeout": timeout})


def _position(response: Any, path: str, start: int) -> int:
    """Number of bytes at the beginning of the answer that are already there."""
    if response.status in (404, 410, 416):
        raise FileNotFoundError(path)
    response.raise_for_status()
    if path.startswith("https:") and any(str(one.url).startswith("http:") for one in (*response.history, response)):
        raise RemoteError(f"{without_secrets(path)} redirects from https to http, where anybody could change it", True)
    if response.status != 206:
        return start
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RemoteError(f"{without_secrets(path)}: the server compresses parts of it, which cannot be joined", True)
    told = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if told != str(start):
        raise RemoteError(f"{without_secrets(path)}: the server sends a different part than requested", True)
    return 0


async def _piece(response: Any) -> bytes:
    """About PIECE bytes, or what came within a second; b"" at the end."""
    parts, size, until = [], 0, time.monotonic() + 1.0
    while size < PIECE and time.monotonic() < until:
        part = await response.content.readany()
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


async def _close(response: Any) -> None:
    response.close()


class _Pace:
    """Measures the download rate over periods of time."""

    def __init__(self, shown: str) -> None:
        self._shown, self._since, self._bytes = shown, time.monotonic(), 0

    def got(self, count: int) -> None:
        """Count received bytes. Raises RemoteError if the rate is too low."""
        self._bytes += count
        seconds = time.monotonic() - self._since
        if seconds < SLOWEST_SECONDS:
            return
        if self._bytes * SLOWEST_SECONDS < SLOWEST_BYTES * seconds:
            raise RemoteError(
                f"{self._shown} only sends {self._bytes / seconds:,.0f} bytes per second: try again later, or download "
                "it by other means and give the path",
                True,
            )
        self._since, self._bytes = time.monotonic(), 0
