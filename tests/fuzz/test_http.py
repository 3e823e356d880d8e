"""What a web server sends: headers, lengths, redirects and bodies of any kind; the right bytes, or one sentence."""

import contextlib
import gzip
import hashlib
import http.server
import random
import shutil
import threading
import zlib
from pathlib import Path

import pytest

from excite.errors import ExciteError
from excite.storage import connection, stage, staging, web
from excite.weights import hub

from .harness import CASES, LONG, Case, Surface
from .mutations import mutated

pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'excite[remote]'")

BODY = bytes(range(256)) * 20
#: What may be asked of the disk for one case: the bounds set below, and a little.
MOST_ON_DISK = 4 << 20


#: Headers, and values that none of them should have; where a redirect may lead; what a page may link to.
_HEADERS = (
    *("Content-Length", "Content-Length", "ETag", "Last-Modified", "Content-Encoding", "Transfer-Encoding", "Location"),
    *("Content-Range", "Accept-Ranges", "Content-Type", "Set-Cookie", "X-" + "y" * 3000),
)
_VALUES = (
    *("", "0", "-1", "NaN", "9" * 400, str(1 << 62), "5, 7", "chunked", "gzip", "identity", "\x80\xff", "x" * 5000),
    *('W/"a"', "bytes", str(len(BODY) // 2), "Thu, 99 Foo"),
)
_PLACES = (
    *("/other", "file:///etc/passwd", "ftp://127.0.0.1/x", "//", "http://[", "", "\x00", "http://127.0.0.1:1/x"),
    *("javascript:1", "?" + "q" * 9000, "../" * 50),
)
_LINKS = (*("a.bin", "../../x", "/etc/passwd", "http://127.0.0.1:1/b", "%2e%2e/x", "a" * 300, "?", "#", "\x00", "c/"),)
_STATUSES = ("204 No Content", "404 Not Found", "500 Oops", "301 Moved", "999 x", "429 Slow")
_KINDS = ("honest", "headers", "headers", "body", "body", "redirect", "raw", "packed", "range", "listing")


class Answer:
    """A status line, headers and a body; whole, until one of the methods below spoils it."""

    def __init__(self, rng: random.Random, method: str, wanted: str | None) -> None:
        start = int((wanted or "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)
        self.rng, self.status, self.body = rng, "206 Partial Content" if wanted else "200 OK", BODY[start:]
        self.headers = {"Content-Length": str(len(self.body)), "Content-Type": "application/octet-stream"}
        if wanted:
            self.headers["Content-Range"] = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        self.sends = method == "GET"

    def raw(self) -> bytes:
        head = "".join(f"{name}: {value}\r\n" for name, value in {**self.headers, "Connection": "close"}.items())
        whole = f"HTTP/1.1 {self.status}\r\n{head}\r\n".encode("latin-1", "replace")
        return whole + self.body if self.sends else whole

    def honest(self) -> None:
        pass

    def spoil_range(self) -> None:
        told = (f"bytes 0-9/{len(BODY)}", "bytes */*", "x", f"bytes {1 << 70}-/1", "bytes 5-2/1")
        self.headers["Content-Range"] = self.rng.choice(told)
        self.status = self.rng.choice(("206 Partial Content", "200 OK", "416 Range Not Satisfiable"))

    def spoil_headers(self) -> None:
        for _ in range(self.rng.choice((1, 1, 2))):
            self.headers[self.rng.choice(_HEADERS)] = self.rng.choice(_VALUES)
        self.status = self.rng.choice((self.status, self.rng.choice(_STATUSES)))

    def spoil_body(self) -> None:
        whole = self.body or BODY
        self.body = self.rng.choice((whole[: len(whole) // 2], whole * 3, b"", whole * 2000, mutated(self.rng, whole)))
        if self.rng.random() < 0.5:
            self.headers.pop("Content-Length")

    def spoil_redirect(self) -> None:
        self.status = self.rng.choice(("301 Moved", "302 Found", "307 Temporary", "308 Permanent"))
        self.headers["Location"] = self.rng.choice(_PLACES)

    def spoil_packed(self) -> None:
        ways = (gzip.compress(self.body), zlib.compress(self.body), self.body, gzip.compress(bytes(32 << 20), 9))
        self.body = mutated(self.rng, self.rng.choice(ways)) if self.rng.random() < 0.3 else self.rng.choice(ways)
        self.headers["Content-Encoding"] = self.rng.choice(("gzip", "deflate", "br", "zstd", "gzip, gzip"))
        self.headers["Content-Length"] = str(len(self.body))

    def spoil_listing(self) -> None:
        links = (self.rng.choice(_LINKS) for _ in range(self.rng.choice((1, 5, 40))))
        self.body = "".join(f'<a href="{link}">x</a>' for link in links).encode()
        self.headers |= {"Content-Type": "text/html", "Content-Length": str(len(self.body))}


class Script:
    """What the server says to each request of a case: drawn once, so that a repeated request gets a repeated answer."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.lock, self.kind = rng, threading.Lock(), rng.choice(_KINDS)
        self.answers: dict[str, bytes] = {}

    def answer(self, method: str, wanted: str | None) -> bytes:
        with self.lock:
            key = f"{method} {wanted}"
            if key not in self.answers or self.rng.random() < 0.1:
                self.answers[key] = self._made(method, wanted)
            return self.answers[key]

    def _made(self, method: str, wanted: str | None) -> bytes:
        answer = Answer(self.rng, method, wanted)
        if self.kind == "raw":
            return mutated(self.rng, answer.raw(), head=200)
        getattr(answer, f"spoil_{self.kind}", answer.honest)()
        return answer.raw()


class Server:
    """Sends what the current script says, byte by byte as it is."""

    script: Script

    def __init__(self) -> None:
        mine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def _say(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has had enough
                    self.wfile.write(mine.script.answer(self.command, self.headers.get("Range")))

            do_GET = do_HEAD = _say

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """With short limits and waits; nothing here depends on how long anything takes."""
    monkeypatch.setattr(staging, "_LOCAL", {})
    monkeypatch.setattr(web, "MOST_OF_UNKNOWN", 2 << 20)
    monkeypatch.setattr(web, "MOST_OF_A_PAGE", 1 << 20)
    monkeypatch.setattr(web, "ANSWER_SECONDS", 5.0)
    monkeypatch.setattr(connection, "TRIES", 2)
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.0)
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    running = Server()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    yield running
    running.stop()


def test_servers(server, tmp_path):
    wanted = hashlib.sha256(BODY).hexdigest()
    kinds: list[str] = []

    def one(case: Case) -> None:
        cache = tmp_path / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        server.script = Script(case.rng)
        kinds.append(server.script.kind)
        use = case.rng.randrange(4)
        try:
            if use == 0:  # a hash lets nothing else through
                path = hub.local_weights(f"{server.url}/a.bin#sha256={wanted}")
                assert path.read_bytes() == BODY
            elif use == 1:
                path = hub.local_weights("hf:owner/name/model.pth")
                assert path.is_file()
            else:
                staged = stage(f"{server.url}/{case.rng.choice(('a.bin', 'folder/', 'x%20y.bin?q=1'))}")
                assert staged.path.resolve().is_relative_to(cache.resolve()), "it is outside the cache"
                if server.script.kind == "honest":
                    assert staged.path.read_bytes() == BODY
        finally:
            size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
            assert size < MOST_ON_DISK, f"{size} bytes on the disk"

    cases = CASES if LONG else CASES // 4  # of a tenth of a second each
    surface = Surface("http", seconds=60, megabytes=512, cases=cases, writable=(tmp_path,), connects=True)
    surface.run(one, test="test_http.py::test_servers")
    assert surface.refused > surface.cases // 4
    assert len(set(kinds)) > 5
    assert not Path("/tmp/x").exists()


def test_the_honest_server_is_read(server):
    server.script = Script(random.Random(0))
    server.script.kind = "honest"
    assert stage(f"{server.url}/a.bin").path.read_bytes() == BODY
    with pytest.raises(ExciteError, match="has the SHA-256"):
        hub.local_weights(f"{server.url}/a.bin#sha256={'0' * 64}")


def test_a_page_that_is_a_file(server):
    """The address of a folder whose page has no links: fsspec then takes it for a file, and tells no name."""
    server.script = Script(random.Random(0))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    server.script.answers = {"HEAD None": head, "GET None": head + b"hello"}
    server.script.rng.random = lambda: 1.0  # always the same answers
    with pytest.raises(ExciteError, match="does not exist"):
        stage(f"{server.url}/folder/")
