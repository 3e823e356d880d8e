"""A store that accepts connections and never answers: what is waited for is said, and ends in one sentence."""

import asyncio
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from excite.cli import main
from excite.errors import ExciteError
from excite.runtime.waiting import Waits
from excite.storage import (
    check_writable,
    connection,
    fetch_run,
    left_behind,
    mirror,
    mirrored,
    open_run,
    patience,
    stage,
)
from excite.storage.connection import connect, retried
from excite.storage.runs import write_marker
from excite.storage.stalled import session_options
from excite.training import train
from tests.storage.conftest import SECRET, eventually
from tests.storage.test_mirror import add_step, lines, make_run, run
from tests.training.small import small

__all__ = ["lines", "run"]  # fixtures


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Limits of tenths of a second instead of minutes."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(connection, "GIVE_UP_SECONDS", 0.6)
    waits = Waits(first=0.3)
    monkeypatch.setattr(patience, "waits", waits)
    connection.forget_connections()  # they have the usual limits
    yield
    connection.forget_connections()
    waits.say = lambda line: None  # an upload that still waits has nothing to say in the next test


class Silent:
    """A server that accepts every connection, reads what comes, and says nothing."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self.listener.accept()[0])
            except OSError:
                return


@pytest.fixture
def silent(monkeypatch, hasty) -> Iterator[Silent]:
    pytest.importorskip("s3fs")
    server = Silent()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.listener.close()
    for one in server.accepted:
        one.close()


def test_one_request_is_tried_a_few_times_and_no_layer_below_multiplies_them(silent, capsys, monkeypatch):
    monkeypatch.setattr(connection, "GIVE_UP_SECONDS", 60.0)
    remote = connect("s3://bucket/x")
    with pytest.raises(ExciteError, match="s3://bucket/x could not be reached"):
        retried(lambda: remote.fs.cat_file(remote.path), remote.url)
    assert len(silent.accepted) == connection.TRIES
    told = capsys.readouterr().err.splitlines()
    assert told
    assert all(re.fullmatch(r"waiting for \d+ s now, for s3://bucket/x to answer", line) for line in told)


@pytest.mark.parametrize("what", [check_writable, fetch_run, open_run, stage], ids=lambda what: what.__name__)
def test_whatever_waits_before_the_training_says_so_and_ends(silent, capsys, what):
    with pytest.raises(ExciteError, match="could not be reached"):
        what("s3://bucket/runs/x")
    assert "s now, for s3://bucket/runs/x to answer\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--run-dir", "s3://bucket/x"], ["--out", "s3://bucket"], ["--resume", "s3://bucket/x"]]
)
def test_the_command_ends_in_one_sentence(silent, tmp_path, monkeypatch, capsys, words):
    (tmp_path / "small.yaml").write_text(small("epochs=1").to_yaml())
    recipe = [] if "--resume" in words else ["small.yaml"]
    monkeypatch.setattr(sys, "argv", ["excite", "train", *recipe, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"error: {words[1]} could not be reached (Read timeout on endpoint URL")
    assert any(line.endswith(f" s now, for {words[1]} to answer") for line in before)
    assert not any(line.startswith("error") for line in before)


def test_what_is_quick_says_nothing(hasty, capsys):
    for _ in range(100):
        with patience.waiting_for("s3://bucket/x"):
            pass
    patience.waits.look()
    assert capsys.readouterr().err == ""


def test_one_line_for_many_requests_to_one_place(hasty, monkeypatch, capsys):
    said = threading.Event()
    monkeypatch.setattr(patience.waits, "say", lambda line: (print(line, file=sys.stderr), said.set()))

    def wait() -> None:
        with patience.waiting_for("s3://key:word@bucket/x?token=1"):
            said.wait(30)

    threads = [threading.Thread(target=wait) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err == "waiting for 0 s now, for s3://bucket/x to answer\n"


def test_training_goes_on_and_its_end_is_announced(bucket, server, hasty, monkeypatch, tmp_path):
    """The store falls silent after the first checkpoint. The training has no more to do with it."""
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "1.5")
    monkeypatch.setattr(mirror, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "SAY_SECONDS", 0.5)
    genuine = mirror.Mirror.start

    def start(mirroring: mirror.Mirror) -> None:
        genuine(mirroring)
        eventually(lambda: mirroring._compared and mirroring.unsent() == [])
        server.freeze()

    monkeypatch.setattr(mirror.Mirror, "start", start)
    try:
        results = train(small("epochs=2"), run_dir=f"{bucket.url}/x", quiet=True)
    finally:
        server.thaw()
    log = (tmp_path / results["run"] / "log.txt").read_text()
    assert "finished 12 steps" in log
    assert log.count(f"files to reach {bucket.url}/x (Ctrl-C: no longer)") >= 2
    assert "waiting up to 2 s for " in log or "waiting up to 1 s for " in log
    assert "could not upload" in log.splitlines()[-1]


@pytest.mark.parametrize("moves", [True, False])
def test_an_upload_may_be_slow_but_not_stand_still(monkeypatch, moves):
    httpsession = pytest.importorskip("aiobotocore.httpsession")
    enough = asyncio.Event()

    class Body:
        """Of which more is taken at each look, until all is."""

        at = 0

        def tell(self) -> int:
            self.at += moves
            if self.at == 5:
                enough.set()
            return self.at

    async def send(session, request) -> str:
        await enough.wait()
        return "answer"

    monkeypatch.setattr(httpsession.AIOHTTPSession, "send", send)
    session = session_options(0.01)["http_session_cls"]()
    request = SimpleNamespace(body=Body(), url="http://store/x")
    if moves:
        assert asyncio.run(session.send(request)) == "answer"
    else:
        with pytest.raises(Exception, match='Read timeout on endpoint URL: "http://store/x"'):
            asyncio.run(session.send(request))


def test_the_wait_at_the_end_is_said_at_once_where_uploads_have_failed(run, bucket, proxy, lines, monkeypatch):
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "0.2")
    with mirrored(run, lines.append) as mirroring:
        eventually(lambda: mirroring.unsent() == [])
        proxy.turn("refused")
        add_step(run, 6)
        eventually(lambda: mirroring.problem is not None)
    # The moment of silence is a minute in these tests (see `quick`): it was not waited for.
    assert lines[2] == f"waiting up to 0 s for 4 files to reach {bucket.url}/runs/r (Ctrl-C: no longer)"
    assert lines[3] == left_behind(run)


def test_a_silent_store_never_delays_steps_and_is_told_of(silent, tmp_path, lines, monkeypatch):
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "0.5")
    folder = make_run(tmp_path / "runs" / "r", 2)
    write_marker(folder, "s3://bucket/runs/r")
    begun = time.monotonic()
    with mirrored(folder, lines.append):
        entered = time.monotonic() - begun
        eventually(lambda: len(lines) == 2)
    assert entered < 0.4, "less than one request"
    assert lines[1].startswith("uploading failed: s3://bucket/runs/r could not be reached (Read timeout")
    assert lines[-1] == left_behind(folder)
