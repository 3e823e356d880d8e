"""The short form of ``make test-faults``: a few faults of each kind into real processes."""

import http.server
import os
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import gate, hooks, kinds
from tests.faults.__main__ import KINDS
from tests.faults.hooks import Trap
from tests.faults.kinds import Row

#: Kind -> how many faults; each is a process killed and one or two started again.
SHORT = {
    "file": 4,
    "step": 2,
    "save": 2,
    "evaluation": 1,
    "worker": 1,
    "rank0": 1,
    "rank1": 1,
    "node": 1,
    "upload": 1,
    "stall": 2,
    "break": 2,
    "convert": 2,
    "graft": 2,
    "export": 1,
    "report": 1,
    "prune": 1,
    "twins": 1,
    "full": 2,
    "read-only": 1,
    "damaged": 10,
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", SHORT)
def test_nothing_is_lost_hung_or_wrong(kind: str, tmp_path: Path):
    if kind in ("full", "read-only") and os.geteuid() != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        row = KINDS[kind](tmp_path, SHORT[kind])
    except PermissionError as error:
        pytest.skip(f"needs the right to mount a small file system: {error}")
    assert row.fine, row


def test_every_kind_has_a_short_form():
    assert SHORT.keys() == KINDS.keys()


def test_a_trap_acts_once_at_its_count():
    acted: list[int] = []
    trap = Trap(3, lambda: acted.append(1))
    step = trap.around(lambda x: x + 1)
    assert [step(x) for x in range(5)] == [1, 2, 3, 4, 5]
    assert (trap.count, acted) == (5, [1])


def test_a_row_that_reached_nothing_proves_nothing():
    assert not Row("x", planted=3).fine
    assert Row("x", planted=3, reached=3).fine
    for count in ("lost", "hung", "tracebacks", "wrong"):
        assert not Row("x", planted=3, reached=3, **{count: 1}).fine


def test_a_wrong_result_is_noticed(tmp_path: Path, monkeypatch):
    """A harness that compares nothing would find nothing."""
    monkeypatch.setattr(kinds, "RESTARTS", 1)
    results = iter([{"model.safetensors": "a"}, {"model.safetensors": "b"}])
    monkeypatch.setattr(kinds, "result_of", lambda run: next(results))
    monkeypatch.setattr(kinds, "run_job", lambda *args, **kwargs: kinds.Outcome([0]))
    made = lambda place: ("", place / "run")  # noqa: E731
    row = kinds.plant(Row("x"), made, iter([kinds.Fault("step", 1)]), tmp_path, 1)
    assert row.wrong == 1


class Told(http.server.BaseHTTPRequestHandler):
    """Answers each request, and notes it."""

    seen: queue.Queue[str]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.seen.put(self.path)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def behind() -> Iterator[tuple[gate.Gate, queue.Queue[str]]]:
    """A gate in front of a server, and the requests that reach the server."""
    handler = type("Handler", (Told,), {"seen": queue.Queue()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    between = gate.Gate(server.server_port)
    yield between, handler.seen
    between.stop()
    server.shutdown()
    server.server_close()


def asked(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 60)
    client.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


def test_a_gate_is_silent_mute_failing_and_open_again(behind):
    between, seen = behind
    between.turn("silent")
    with asked(between.port) as silent:
        assert between.dropped.wait(60)
        between.turn("open")
        with asked(between.port) as other:
            assert other.recv(99).startswith(b"HTTP/1.0 200")
        assert seen.get(timeout=60) == "/x"
        between.turn("mute")
        with asked(between.port) as mute:
            assert seen.get(timeout=60) == "/x"  # it is done, and nobody says so
            between.turn("refused")
            assert [one.recv(99) for one in (silent, mute)] == [b"", b""]
    with pytest.raises(ConnectionRefusedError):
        asked(between.port)
    between.turn("failing")
    with asked(between.port) as failing:
        assert failing.recv(99).startswith(b"HTTP/1.1 503")
    assert seen.empty()
    assert between.turned == 4


def test_a_process_gives_the_gate_its_orders(behind, monkeypatch):
    between, _ = behind
    monkeypatch.setenv(hooks.GATE, str(between.orders))
    hooks.turn_gate("mute")
    assert between.mode == "mute"


def test_places_are_drawn_from_each_kind_in_turn():
    drawn = kinds.in_turn({"step": 2, "file": 5}, 6, 0)
    assert [kind for kind, _ in drawn] == ["step", "file", "step", "file", "file", "file"]
    assert len(set(drawn)) == 6
    assert sorted(kinds.in_turn({"step": 2}, 6, 0)) == [("step", 1), ("step", 2)]
