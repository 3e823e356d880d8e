"""Ends a request to S3 that makes no progress: aiohttp, below s3fs, limits only the time for connecting and reading.

An upload to a store that accepts the connection and never answers would wait for ever, for the "100 Continue" before
its body, or for room in the socket.
"""

import asyncio
import importlib
import inspect
from typing import Any


def session_options(seconds: float) -> dict[str, Any]:
    """Options of aiobotocore's configuration that bound the time without progress; none if its version is too old."""
    config = importlib.import_module("aiobotocore.config").AioConfig
    if "http_session_cls" not in inspect.signature(config.__init__).parameters:
        return {}
    return {"http_session_cls": _session_class(seconds)}


def _session_class(seconds: float) -> type:
    base: Any = importlib.import_module("aiobotocore.httpsession").AIOHTTPSession
    timeout: Any = importlib.import_module("botocore.exceptions").ReadTimeoutError

    class Impatient(base):
        """aiobotocore's session, whose requests end if nothing of the body is taken in ``seconds``."""

        async def send(self, request: Any) -> Any:
            sending, taken = asyncio.ensure_future(super().send(request)), -1
            try:
                while True:
                    done, _ = await asyncio.wait([sending], timeout=seconds)
                    if done:
                        return sending.result()
                    before, taken = taken, _taken(request.body)
                    if taken == before:
                        raise timeout(endpoint_url=request.url, error=f"no answer within {seconds:g} s")
            finally:
                sending.cancel()

    return Impatient


def _taken(body: Any) -> int:
    """How many bytes of a request's body have been read for sending; 0 if it cannot tell."""
    try:
        return int(getattr(body, "_raw", body).tell())  # botocore wraps what it adds a checksum to
    except (AttributeError, TypeError, ValueError):
        return 0
