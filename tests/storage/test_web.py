"""Web servers that send too much, too slowly, or another thing than they said: each ends in bounds, with a sentence."""

import contextlib
import gzip
import http.server
import shutil
import threading
import time

import pytest

from excite.errors import ExciteError
from excite.storage import connection, stage, staging, web
from excite.weights import hub

pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'excite[remote]'")


class Server:
    """Answers every request by ``answer(handler)``; ``head`` are the headers of HEAD."""

    def __init__(self):
        self.requests, self.head, self.answer, self.stopping = [], {}, lambda handler: None, False
        mine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                mine.requests.append("HEAD")
                self.start(200, **mine.head)

            def do_GET(self):
                mine.requests.append("GET")
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has had enough
                    mine.answer(self)

            def start(self, status, **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()

            def send_for_ever(self, data, pause=0.0):
                while not mine.stopping:
                    self.wfile.write(data)
                    time.sleep(pause)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self.stopping = True
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(staging, "_LOCAL", {})
    monkeypatch.setattr(web, "SLOWEST_SECONDS", 1.5)
    monkeypatch.setattr(web, "SLOWEST_BYTES", 3_000)
    monkeypatch.setattr(web, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(web, "MOST_OF_UNKNOWN", 8 << 20)
    monkeypatch.setattr(web, "MOST_OF_A_PAGE", 1 << 20)
    monkeypatch.setattr(connection, "TRIES", 2)
    running = Server()
    yield running
    running.stop()


def left(tmp_path):
    """Bytes in the cache."""
    return sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_a_file_is_fetched_in_one_request_and_a_cut_one_is_gone_on_with(server, tmp_path, monkeypatch):
    content = bytes(range(256)) * 20_000

    def answer(handler):
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        part = content[start:]
        told = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        handler.start(206 if start else 200, Content_Length=len(part), **told)
        handler.wfile.write(part if start else part[: len(part) // 2])

    server.head, server.answer = {"Content_Length": len(content)}, answer
    assert stage(f"{server.url}/a.bin").path.read_bytes() == content
    assert server.requests.count("GET") == 2


def test_a_server_without_ranges_and_sizes(server):
    content = bytes(range(256)) * 10_000
    cuts = [True]

    def answer(handler):
        handler.start(200)
        handler.wfile.write(content)

    server.answer = answer
    assert stage(f"{server.url}/a.bin").path.read_bytes() == content

    def cut_once(handler):  # it knows its size, but no ranges
        handler.start(200, Content_Length=len(content))
        handler.wfile.write(content[: len(content) // 2] if cuts else content)
        cuts.clear()

    server.head, server.answer = {"Content_Length": len(content)}, cut_once
    assert stage(f"{server.url}/b.bin").path.read_bytes() == content


def test_a_body_of_unknown_size_that_never_ends(server, tmp_path):
    server.answer = lambda handler: (handler.start(200), handler.send_for_ever(bytes(1 << 16)))
    with pytest.raises(
        ExciteError, match=r"does not announce its size and does not end after 0\.0 GB; nothing was kept"
    ):
        stage(f"{server.url}/a.bin")
    assert left(tmp_path) < 1 << 20
    assert server.requests.count("GET") < 6


def test_a_body_longer_than_announced(server, tmp_path):
    server.head = {"Content_Length": 1000}
    server.answer = lambda handler: (handler.start(200), handler.send_for_ever(bytes(1 << 16)))
    with pytest.raises(ExciteError, match="sends more than the 1,000 bytes that it announced"):
        stage(f"{server.url}/a.bin")
    assert left(tmp_path) < 1000


def test_gzip_is_bounded_by_what_comes_out_of_it(server, tmp_path):
    bomb = gzip.compress(bytes(256 << 20), 9)
    server.answer = lambda handler: (
        handler.start(200, Content_Encoding="gzip", Content_Length=len(bomb)),
        handler.wfile.write(bomb),
    )
    with pytest.raises(ExciteError, match="does not end after"):
        stage(f"{server.url}/a.bin")
    assert left(tmp_path) < 1 << 20


@pytest.mark.parametrize("announced", [{}, {"Content_Length": 1 << 20}])
def test_a_byte_a_second(server, announced):
    server.head = announced
    server.answer = lambda handler: (handler.start(200, **announced), handler.send_for_ever(b"x", 0.2))
    started = time.monotonic()
    with pytest.raises(ExciteError, match="bytes per second: try again later"):
        stage(f"{server.url}/a.bin")
    assert time.monotonic() - started < 20


@pytest.mark.heavy
def test_headers_that_never_end(server):
    def answer(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        handler.send_for_ever(b"x", 0.2)

    server.head, server.answer = {"Content_Length": 100}, answer
    started = time.monotonic()
    with pytest.raises(ExciteError, match="could not be reached"):
        stage(f"{server.url}/a.bin")
    assert time.monotonic() - started < 40


def test_a_page_of_links_that_never_ends(server):
    server.answer = lambda handler: (handler.start(200, Content_Type="text/html"), handler.send_for_ever(b"<a>" * 9999))
    with pytest.raises(ExciteError, match="the page does not end after 1 MB"):
        stage(f"{server.url}/folder/")


def test_redirects_in_a_circle(server):
    server.answer = lambda handler: handler.start(302, Location="/again")
    server.head = {"Content_Length": 10}
    with pytest.raises(ExciteError):
        stage(f"{server.url}/a.bin")


def test_no_more_than_the_disk_holds(server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 10**8, 10**8))
    server.head = {"Content_Length": 10**12}
    server.answer = lambda handler: pytest.fail("it was asked for what the disk cannot hold")
    with pytest.raises(ExciteError, match="the disk is too full"):
        stage(f"{server.url}/a.bin")
    server.head, server.answer = {}, lambda handler: (handler.start(200), handler.send_for_ever(bytes(1 << 16)))
    with pytest.raises(ExciteError, match="the disk is too full"):
        stage(f"{server.url}/b.bin")


def test_the_address_that_stands_for_the_hub_is_bounded_too(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server.answer = lambda handler: (handler.start(200), handler.send_for_ever(bytes(1 << 16)))
    with pytest.raises(ExciteError, match="does not end after"):
        hub.local_weights("hf:owner/net/model.safetensors")


def test_https_does_not_lead_to_http():
    class Response:
        status, url, history, headers = 200, "http://host/a", (), {}

        def raise_for_status(self):
            pass

    with pytest.raises(ExciteError, match="redirects from https to http"):
        web._position(Response(), "https://host/a", 0)
    assert web._position(Response(), "http://host/a", 7) == 7, "all of it, of which seven bytes are there"
