"""Weights from elsewhere, against a web server on loopback: hashes, caches, resume, and each way to fail."""

import hashlib
import http.server
import importlib.util
import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from excite.errors import ExciteError
from excite.storage import connection, staging
from excite.weights import hub
from excite.weights.convert import convert
from excite.weights.meta import describe

from .nets import make

pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'excite[remote]'")


class Web:
    """Serves ``files`` (path -> bytes), with ranges; counts requests; ``cut`` closes a body early, that many times."""

    def __init__(self):
        self.files, self.requests, self.cut, self.etag = {}, [], 0, None
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                web.requests.append((self.command, self.path))
                content = web.files.get(self.path.partition("?")[0])
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                first, last = 0, len(content) - 1
                wanted = self.headers.get("Range", "")
                if wanted.startswith("bytes="):
                    begin, _, end = wanted.removeprefix("bytes=").partition("-")
                    first, last = int(begin), min(int(end or last), last)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(last - first + 1))
                self.send_header("ETag", web.etag or f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                if body:
                    part = content[first : last + 1]
                    if web.cut:
                        web.cut -= 1
                        part = part[: len(part) // 2]
                        self.close_connection = True
                    self.wfile.write(part)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def bodies(self):
        return [path for command, path in self.requests if command == "GET"]


@pytest.fixture
def web(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"), raising=False)
    # It is read when the library is imported, which may have been in a test that forbids the network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(staging, "_LOCAL", {})
    server = Web()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.stop()


@pytest.fixture
def weights(tiny, tmp_path):
    """The bytes of a checkpoint in timm's names."""
    tensors = {n.replace(".gate.", ".se."): t for n, t in make("tiny_seresnet", num_classes=4).state_dict().items()}
    save_file(tensors, tmp_path / "made.safetensors")
    return (tmp_path / "made.safetensors").read_bytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_an_address_with_its_hash_is_fetched_once(web, weights):
    web.files["/a/net.safetensors"] = weights
    source = f"{web.url}/a/net.safetensors#sha256={sha256(weights)}"
    path = hub.local_weights(source)
    assert path.read_bytes() == weights
    assert path.name == "net.safetensors"
    web.stop()
    assert hub.local_weights(source) == path
    assert convert(source)[1].foreign.name == "tiny_seresnet"


def test_a_wrong_hash_is_refused_and_forgotten(web, weights):
    damaged = weights[:-1] + bytes([weights[-1] ^ 1])
    web.etag = '"the same"'  # so that nothing but the hash tells one from the other
    web.files["/net.pth"] = damaged
    source = f"{web.url}/net.pth#sha256={sha256(weights)}"
    with pytest.raises(ExciteError, match=f"has the SHA-256 {sha256(damaged)}, not {sha256(weights)}"):
        hub.local_weights(source)
    web.files["/net.pth"] = weights
    assert hub.local_weights(source).read_bytes() == weights


def test_a_damaged_copy_in_the_cache_is_fetched_again(web, weights):
    web.files["/net.pth"] = weights
    source = f"{web.url}/net.pth#sha256={sha256(weights)}"
    path = hub.local_weights(source)
    content = bytearray(weights)
    content[-1] ^= 1
    path.unlink()  # a hard link: the staged copy must not change with it
    path.write_bytes(content)
    assert hub.local_weights(source).read_bytes() == weights


@pytest.mark.parametrize("fragment", ["sha256=12", "md5=" + "0" * 32, "x"])
def test_a_hash_must_be_whole(web, fragment):
    with pytest.raises(ExciteError, match="must be followed by sha256= and 64 hexadecimal digits"):
        hub.local_weights(f"{web.url}/net.pth#{fragment}")


def test_a_connection_that_breaks_is_taken_up_again(web, weights):
    web.files["/net.pth"], web.cut = weights, 1
    assert hub.local_weights(f"{web.url}/net.pth").read_bytes() == weights
    assert len(web.bodies()) > 1


def test_a_connection_that_keeps_breaking_is_one_sentence(web, weights):
    web.files["/net.pth"], web.cut = weights, 1000
    with pytest.raises(ExciteError, match=r"net\.pth") as error:
        hub.local_weights(f"{web.url}/net.pth#sha256={sha256(weights)}")
    assert "\n" not in str(error.value)


def test_nothing_there(web):
    with pytest.raises(ExciteError, match=r"does not exist; check its spelling"):
        hub.local_weights(f"{web.url}/net.pth")


def test_no_network(web):
    web.stop()
    with pytest.raises(ExciteError, match="could not be reached"):
        hub.local_weights(f"{web.url}/net.pth")


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------

WAYS = ["library", "plain"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Once through huggingface_hub, once without."""
    if request.param == "library":
        if importlib.util.find_spec("huggingface_hub") is None:
            pytest.skip("huggingface_hub is not installed")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own tries
        monkeypatch.setenv("HF_TOKEN", "hf_test")  # else another address than the hub's own is not left to it
        assert hub._library_serves()
        return request.param
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else real(name))
    return request.param


def test_a_repository_of_the_hub(web, weights, way):
    web.files["/owner/net/resolve/main/model.safetensors"] = weights
    assert hub.local_weights("hf:owner/net").read_bytes() == weights


CONFIG = b"""{"architecture": "tiny_seresnet", "num_classes": 4, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6], "input_size": [3, 48, 48], "crop_pct": 0.9, "interpolation": "bilinear"}}"""


def test_what_a_repository_says_of_its_network_comes_with_it(web, weights, way):
    web.files["/owner/net/resolve/main/model.safetensors"] = weights
    web.files["/owner/net/resolve/main/config.json"] = CONFIG
    preprocessing = describe(*convert("hf:owner/net"))["preprocessing"]
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (preprocessing["image_size"], preprocessing["crop_pct"]) == (48, 0.9)
    path = hub.local_weights("hf:owner/net")
    assert path.read_bytes() == weights
    web.files["/owner/net/resolve/main/config.json"] = CONFIG.replace(b"48", b"40")
    if way == "plain":  # the library's own cache goes by the commit, which stays the same here
        assert describe(*convert("hf:owner/net"))["preprocessing"]["image_size"] == 40


def test_weights_that_came_without_what_is_said_of_them(web, weights, monkeypatch, capsys):
    fetch = hub._by_address

    def fails_for_the_config(repository, file, revision):
        if file == "config.json":
            raise ExciteError("the line is down")
        return fetch(repository, file, revision)

    monkeypatch.setattr(hub, "_by_address", fails_for_the_config)
    web.files["/owner/net/resolve/main/model.safetensors"] = weights
    assert hub.local_weights("hf:owner/net").read_bytes() == weights
    assert (
        "continuing without config.json, which describes the network and its images: the line is down"
        in capsys.readouterr().err
    )


def test_the_second_best_file_of_a_repository(web, weights, way):
    web.files["/owner/net/resolve/main/pytorch_model.bin"] = weights
    assert hub.local_weights("hf:owner/net").read_bytes() == weights


def test_a_file_and_a_revision_of_a_repository(web, weights, way):
    web.files["/owner/net/resolve/v1.0/sub/net.ckpt"] = weights
    path = hub.local_weights("hf:owner/net/sub/net.ckpt@v1.0")
    assert (path.name, path.read_bytes()) == ("net.ckpt", weights)


def test_a_repository_without_weights(web, way):
    with pytest.raises(ExciteError, match=r"no such public repository, revision or file \(none of model.safetensors"):
        hub.local_weights("hf:owner/net")


def test_the_hub_out_of_reach(web, way):
    web.stop()
    with pytest.raises(hub.NotReached, match="cannot be reached") as error:
        hub.local_weights("hf:owner/net")
    told = str(error.value)
    assert "\n" not in told
    assert f"download {web.url}/owner/net/resolve/main/model.safetensors, copy it here as " in told
    assert web.requests == []  # not one try, where six would have been made


def test_a_copy_made_by_hand_is_taken_without_a_network(web, weights, monkeypatch):
    """The place is the one that the sentence names."""
    monkeypatch.setattr(hub, "_timm_config", lambda name: None)  # without timm
    web.stop()
    with pytest.raises(hub.NotReached) as error:
        hub.local_weights("timm:net.some_in1k")
    place = Path(re.search(r"copy it here as (\S+),", str(error.value))[1])
    place.parent.mkdir(parents=True)
    place.write_bytes(weights)
    assert hub.local_weights("timm:net.some_in1k") == place
    assert hub.local_weights("hf:timm/net.some_in1k") == place


def test_what_was_fetched_before_is_taken_without_a_network(web, weights, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a token")  # so that huggingface_hub fetches it
    web.files["/owner/net/resolve/main/model.safetensors"] = weights
    path = hub.local_weights("hf:owner/net")
    web.stop()
    assert hub.local_weights("hf:owner/net") == path


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_offline_switch_is_obeyed(switch, web, weights, monkeypatch):
    web.files["/owner/net/resolve/main/model.safetensors"] = weights
    monkeypatch.setenv(switch, "1")
    with pytest.raises(hub.NotReached, match=f"{switch} is set"):
        hub.local_weights("hf:owner/net")
    assert web.requests == []


def test_a_damaged_file_of_the_hub_is_refused_and_fetched_again(web, weights, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a token")
    web.etag = f'"{sha256(weights)}"'
    damaged = weights[:-1] + bytes([weights[-1] ^ 1])
    web.files["/owner/net/resolve/main/model.safetensors"] = damaged
    with pytest.raises(ExciteError, match=f"has the SHA-256 {sha256(damaged)}, not {sha256(weights)}"):
        hub.local_weights("hf:owner/net")
    web.files["/owner/net/resolve/main/model.safetensors"] = weights
    assert hub.local_weights("hf:owner/net").read_bytes() == weights


@pytest.mark.parametrize("source", ["hf:owner", "hf:", "hf:a/b@", "hf:a b/c"])
def test_malformed_names_of_repositories(web, source):
    with pytest.raises(ExciteError, match="is not of the form hf:owner/name"):
        hub.local_weights(source)
    assert web.requests == []


# --- timm's weights ---------------------------------------------------------------------------------------------------


def test_timms_weights_without_timm(web, weights, monkeypatch):
    monkeypatch.setattr(hub, "_timm_config", lambda name: None)
    web.files["/timm/seresnet50.ra2_in1k/resolve/main/model.safetensors"] = weights
    assert hub.local_weights("timm:seresnet50.ra2_in1k").read_bytes() == weights
    with pytest.raises(
        ExciteError,
        match=r"timm is not installed, so give the full name of the weights, such as timm:seresnet50\.ra2_in1k",
    ):
        hub.local_weights("timm:seresnet50")


def test_timms_own_record_of_its_weights(web, weights, timm):
    web.files["/timm/seresnet50.a1_in1k/resolve/main/model.safetensors"] = weights
    assert hub.local_weights("timm:seresnet50").read_bytes() == weights
    with pytest.raises(ExciteError, match="timm has no model 'seresnet51'; did you mean"):
        hub.local_weights("timm:seresnet51")
    with pytest.raises(ExciteError, match="timm has no pretrained weights of that name"):
        hub.local_weights("timm:seresnet18")


# --- places of this machine -------------------------------------------------------------------------------------------


def test_local_places(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "net.pth")
    assert hub.local_weights(tmp_path / "net.pth") == tmp_path / "net.pth"
    with pytest.raises(ExciteError, match=r"no weights at 'nowhere\.pth': .* has no 'nowhere.pth'; give a file, https"):
        hub.local_weights("nowhere.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExciteError, match="has no weights"):
        hub.local_weights(tmp_path / "empty")
    (tmp_path / "tf.ckpt.index").touch()
    assert hub.local_weights(tmp_path / "tf.ckpt") == tmp_path / "tf.ckpt"


def test_the_newest_checkpoint_of_a_run_folder(tmp_path):
    steps = [tmp_path / "checkpoints" / f"step-0000000{step}" for step in (1, 2)]
    for step in steps:
        step.mkdir(parents=True)
        (step / "model.safetensors").touch()
    assert hub.local_weights(tmp_path) == steps[1] / "model.safetensors"
    (steps[1] / "ema.safetensors").touch()
    assert hub.local_weights(tmp_path) == steps[1] / "ema.safetensors"
    (tmp_path / "model.safetensors").touch()
    assert hub.local_weights(tmp_path) == Path(tmp_path / "model.safetensors")
