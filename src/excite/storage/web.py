"""The web's side of fetching: bodies bounded in size and in time, whatever the server says or does.

A server may announce one size and send another, send for ever, send a gigabyte of zeros in a megabyte of gzip, or a
byte a second. aiohttp, below fsspec, reads what comes. Here every page is read up to a size, and every file piece by
piece, with a lowest rate; redirects are followed ten times at most (aiohttp's own bound), and never from https to http.
"""

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excite.storage.address import Remote, RemoteError, without_secrets

#: A page of links, or an answer that is no file; bytes.
MOST_OF_A_PAGE = 64 << 20
#: A file whose size the server does not say; bytes.
MOST_OF_UNKNOWN = 4 << 30
#: Less than so many bytes in so many seconds is no download: a megabyte would take eight minutes.
SLOWEST_BYTES, SLOWEST_SECONDS = 60_000, 30.0
ANSWER_SECONDS = 30.0  # for the headers, and for a whole page
PIECE = 1 << 20  # bytes handed on at a time


class TooMuch(RemoteError):
    """A server sends more than it may; what came before is worth nothing."""


async def client(**options: Any) -> Any:
    """What fsspec makes its session of: aiohttp's, with bounds."""
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            """The whole body, of a page and not of a file."""
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
    """What a web server sends of a file from byte ``start`` on, in pieces of about PIECE bytes.

    Args:
        remote: of https or http.
        path: the file's address.
        start: what is there already is not asked for, and where the server knows no ranges, skipped.
        size: what it announced; None where it did not.

    Raises:
        RemoteError: it sends more than it announced (or of an unknown size, than is reasonable), or too slowly.
        FileNotFoundError: there is nothing any more, or less than ``start`` bytes.
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
        return f"{shown} sends more than the {size:,} bytes that it announced: nothing of it was used"
    return (
        f"{shown} does not say its size and does not end after {MOST_OF_UNKNOWN / 1e9:,.1f} GB: nothing of it was "
        "used; fetch it by other means, and give the path"
    )


def check_room(place: Path, shown: str, wanted: int) -> None:
    """Raise RemoteError where so many more bytes would fill the disk."""
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
    """How many bytes of the answer are there already."""
    if response.status in (404, 410, 416):
        raise FileNotFoundError(path)
    response.raise_for_status()
    if path.startswith("https:") and any(str(one.url).startswith("http:") for one in (*response.history, response)):
        raise RemoteError(f"{without_secrets(path)} leads from https to http, where anybody could change it", True)
    if response.status != 206:
        return start
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RemoteError(f"{without_secrets(path)}: the server sends parts of it compressed, which fit nowhere", True)
    told = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if told != str(start):
        raise RemoteError(f"{without_secrets(path)}: the server sends another part than it was asked for", True)
    return 0


async def _piece(response: Any) -> bytes:
    """About a piece, or what came within a second; b"" at the end."""
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
    """Measures how much comes in stretches of time."""

    def __init__(self, shown: str) -> None:
        self._shown, self._since, self._bytes = shown, time.monotonic(), 0

    def got(self, count: int) -> None:
        """So many bytes came. Raises RemoteError where that is too little."""
        self._bytes += count
        seconds = time.monotonic() - self._since
        if seconds < SLOWEST_SECONDS:
            return
        if self._bytes * SLOWEST_SECONDS < SLOWEST_BYTES * seconds:
            raise RemoteError(
                f"{self._shown} sends {self._bytes / seconds:,.0f} bytes a second, which is no download: try again "
                "later, or fetch it by other means and give the path",
                True,
            )
        self._since, self._bytes = time.monotonic(), 0
