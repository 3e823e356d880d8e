"""What an address is, and what is said when it cannot be used."""

import json
import re
import subprocess
import sys

import pytest

from excite.data import DataConfig, open_data
from excite.errors import ExciteError, install_line
from excite.storage import check_writable, connection, is_remote, refuse_secrets, stage
from excite.storage.connection import explained
from excite.trained.given import find_images
from excite.weights.own import read_own
from tests.storage.conftest import SECRET


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://b/x", True),
        ("file:///x", True),
        ("zip://a::s3://b/x.zip", True),
        ("simplecache::https://h/x", True),
        ("runs/x", False),
        ("C:\\runs", False),
        ("/a/b:c", False),
        ("a=s3://b", False),
        (None, False),
    ],
)
def test_what_is_an_address(source, expected):
    assert is_remote(source) is expected


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:pw@bucket/x",
        "ftp://user@host/x",
        "s3://:pw@bucket/x",
        "https://host/x?X-Amz-Signature=1&X-Amz-Credential=2",
        "https://account.blob.core.windows.net/c/x?sv=1&sig=abc",
        "zip://a::https://u:pw@host/x.zip",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(url):
    with pytest.raises(ExciteError, match="recipes and logs would store") as caught:
        refuse_secrets(url)
    assert not any(secret in str(caught.value) for secret in ("AKIA", "pw", "Signature", "sig=", "user@"))
    with pytest.raises(ExciteError, match="recipes and logs would store"):
        DataConfig(source="folder", root=url, image_size=8)
    with pytest.raises(ExciteError, match="recipes and logs would store"):
        check_writable(url)


def test_an_address_may_hold_what_only_looks_like_it():
    for url in ("s3://bucket/a@b:c/x", "https://host/x?version=3", "abfs://container@account.dfs.core.windows.net/x"):
        refuse_secrets(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://b/x", "did you mean 's3'"),
        ("gs://b/x", "pip install gcsfs"),
        ("s3://", "has no bucket or folder"),
        ("file:///no/such/thing", "no/such/thing"),
        ("memory://no/such/thing", "there is no bucket 'no'"),
    ],
)
def test_a_useless_address_is_one_sentence(url, message):
    for use in (lambda: open_data(DataConfig(source="folder", root=url, image_size=8)), lambda: read_own(url)):
        with pytest.raises(ExciteError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_without_s3fs_the_pip_command_is_told(monkeypatch):
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    connection.forget_connections()
    with pytest.raises(ExciteError, match=re.escape(install_line("remote"))):
        stage("s3://bucket/x")


def test_the_web_is_read_only():
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'excite[remote]'")
    with pytest.raises(ExciteError, match="is read-only"):
        check_writable("https://host/runs")


def test_what_is_missing_is_named_with_its_neighbour(bucket):
    bucket.put({"photos/cat/1.jpg": b"x"})
    for url, message in (
        (f"{bucket.url}/fotos/cat", "has no 'fotos'; did you mean 'photos'"),
        (f"{bucket.url}/photos/cat/2.jpg", "has no '2.jpg'; did you mean '1.jpg'"),
        (f"{bucket.url}x/photos", "there is no such bucket"),
        (f"{bucket.url}/dogs/*.jpg", "neither a file, a folder nor a pattern"),
    ):
        with pytest.raises(ExciteError, match=message):
            find_images([url])
    with pytest.raises(ExciteError, match="there is no bucket"):
        check_writable(f"{bucket.url}x/runs")
    check_writable(f"{bucket.url}/runs")
    assert bucket.names() == ["photos/cat/1.jpg"]  # nothing is left of the check


def test_wrong_and_missing_credentials_and_a_dead_server_are_one_sentence_each(bucket, server, monkeypatch):
    bucket.put({"x.jpg": b"x"})
    uses = (lambda: stage(f"{bucket.url}/x.jpg"), lambda: check_writable(f"{bucket.url}/runs"))
    server.check_credentials(True)
    try:
        for use in uses:
            with pytest.raises(ExciteError, match="access was denied") as caught:
                use()
            assert SECRET not in str(caught.value)
    finally:
        server.check_credentials(False)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    for use in uses:
        with pytest.raises(ExciteError, match="no credentials were found"):
            use()
    monkeypatch.setattr(connection, "TRIES", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for use in uses:
        with pytest.raises(ExciteError, match="could not be reached"):
            use()


def test_no_message_holds_a_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "tOkEn")
    told = str(explained(RuntimeError(f"signing with {SECRET} and tOkEn failed"), "s3://u:p@b/x?sig=1"))
    assert told == "s3://b/x: signing with *** and *** failed"


def test_storage_loads_nothing_heavy():
    code = (
        "import excite.storage, sys, json; "
        "print(json.dumps([m for m in ('fsspec', 's3fs', 'botocore', 'torch', 'rich') if m in sys.modules]))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) == []
