"""``excite graft``: the table, the proof, the files, and what else can be done with them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import excite as package
from excite.errors import ExciteError
from excite.grafting import Grafted, graft, load_grafted, proof, save_grafted
from excite.grafting.proof import prove
from excite.grafting.prune import prune, write
from excite.trained.predictor import load
from excite.training import train
from excite.weights import hub
from excite.weights.layouts import TIMM_EFFICIENTNET_LITE
from excite.weights.own import read_own
from tests.grafting import networks
from tests.grafting.networks import randomised
from tests.training.small import small


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def run(source, **changes):
    said = []
    settings = {"gate": "se", "at": [], "init": "identity", "options": {}, "dry_run": False, "images": None}
    settings |= {
        "weights": None,
        "out": None,
        "force": False,
        "say": said.append,
        "show": lambda plan, costs: None,
        **changes,
    }
    return proof.graft_and_prove(str(source), **settings), said


@pytest.mark.heavy
def test_a_run_is_grafted_proved_and_goes_on(ungated_run, photos, tmp_path):
    """Grafted to a file; that file is validated, and trained on from."""
    out = tmp_path / "grafted.safetensors"
    result, said = run(ungated_run, images=str(photos), out=out)
    assert result["difference"] == 0.0
    assert result["images"] == 3
    assert said[0].startswith(
        f"largest difference between the logits before and after on 3 images from {photos}: 0 (fp32;"
    )
    before, after = (package.validate(source, precision="fp32")[1] for source in (ungated_run, out))
    assert after.confusion == before.confusion
    meta = read_own(out).meta
    assert (
        meta["model"]["args"]["gate"] == meta["recipe"]["model"]["options"]["gate"] == {"name": "se", "identity": True}
    )
    assert meta["trained_as"] == read_own(ungated_run).meta["model"]
    from excite.report.build import report

    assert report(out, images=8, quick=True)[0]["about"]["command"] is None

    gated = "model.options={gate: {name: se, identity: true}}"
    for source in (out, ungated_run):  # the gates' tensors are there, or start afresh
        recipe = small(
            "model.name=cifar_resnet20",
            gated,
            f"init_from={source}",
            "epochs=1",
            "optimizer.lr=1e-4",
            "checkpoint.every_steps=null",
        )
        after = train(recipe, out=tmp_path / "runs", quiet=True)
        assert after["top1"] == pytest.approx(before.top1, abs=5)
        assert after["params_m"] > before_params(ungated_run)
        log = (Path(after["run"]) / "log.txt").read_text()
        assert ("all tensors" if source == out else "all but 9 gates, which start as the identity") in log


def before_params(run_folder) -> float:
    return json.loads((Path(run_folder) / "results.json").read_text())["params_m"]


def test_gates_that_do_not_start_as_the_identity_are_not_left_fresh(ungated_run, tmp_path):
    recipe = small("model.options={gate: se}", "model.name=cifar_resnet20", f"init_from={ungated_run}")
    with pytest.raises(ExciteError, match=r"layer1.0.gate.fc1.weight is missing"):
        train(recipe, out=tmp_path, quiet=True)


def test_the_proof_finds_a_difference(ungated_run, tmp_path, monkeypatch):
    """Were a gate not the identity, nothing would be written."""
    monkeypatch.setattr("excite.gates.Gate._zero_and_double", lambda self, *layers: True)
    out = tmp_path / "grafted.safetensors"
    with pytest.raises(ExciteError, match="the grafted network does not compute the same: its logits differ by"):
        run(ungated_run, out=out)
    assert not out.exists()


def test_the_proof_shows_how_far_it_is(ungated_run, photos):
    """Every stage, in its order, and the images counted to the end."""
    told = []
    run(ungated_run, images=str(photos), progress=lambda *state: told.append(state))
    assert list(dict.fromkeys(what for what, _, _ in told)) == ["reading", "tracing", "comparing"]
    assert told[-1] == ("comparing", 12, 12)  # 3 images, 2 networks, contiguous and channels-last


def test_the_proof_is_the_largest_difference():
    model = randomised(networks.TorchvisionStyle())
    other = graft(model, init="paper")
    x = torch.randn(11, 3, 16, 16)
    with torch.no_grad():
        expected = (model(x) - other(x)).abs().max()
    assert prove(model, other, x)["difference"] == pytest.approx(float(expected), rel=1e-6)


def test_the_command_line(ungated_run, command_line, tmp_path):
    """The table, the proof on random images; nothing is written over."""
    words = ["graft", ungated_run, "--at", "layer3", "--option", "reduction=8", "--out", "a.safetensors"]
    text = command_line(*words)
    assert "layer3.2" in text
    assert "3 blocks of cifar_resnet20" in text
    assert "on 8 random images (normal noise): 0 (fp32" in " ".join(text.split())
    assert read_own(tmp_path / "a.safetensors").meta["model"]["args"]["gate"]["reduction"] == 8
    kept = (tmp_path / "a.safetensors").read_bytes()
    assert command_line(*words) == "error: a.safetensors already exists; use --force to overwrite it"
    assert (tmp_path / "a.safetensors").read_bytes() == kept
    assert "is not of the form NAME=VALUE" in command_line("graft", ungated_run, "--option", "reduction")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "see"}, "unknown gate 'see'"),
        ({"options": {"reducton": 8}}, "did you mean 'reduction'"),
        ({"dry_run": True, "out": Path("x")}, "--dry-run writes nothing"),
        ({"weights": "x.pth"}, "--weights is only for a model given by name"),
        ({"images": "/nowhere"}, "'/nowhere' is neither"),
    ],
    ids=str,
)
def test_mistakes(ungated_run, changes, message):
    with pytest.raises(ExciteError, match=message):
        run(ungated_run, **changes)


def test_names_of_models_are_for_looking(tmp_path):
    result, _ = run("cifar_resnet20", dry_run=True)
    assert result["added"] == 3 * 49 + 3 * 162 + 3 * 580  # 2CS + S + C at 16, 32 and 64 channels
    with pytest.raises(ExciteError, match="cifar_resnet20 is a model name without weights"):
        run("cifar_resnet20", out=tmp_path / "x.safetensors")
    with pytest.raises(ExciteError, match="no run folder or checkpoint 'cifar_resnet21'"):
        run("cifar_resnet21")


def test_weights_that_timm_has_on_the_hub_are_grafted_without_timm(tmp_path, monkeypatch):
    """``timm:NAME.TAG`` is the trained network, not timm's architecture with random weights."""
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ExciteError, match="copy it here as"):
        run("timm:tf_efficientnet_lite0.in1k")
    place = hub.place_for("timm/tf_efficientnet_lite0.in1k") / "model.safetensors"
    place.parent.mkdir(parents=True)
    trained = randomised(package.create_model("efficientnet_lite0", num_classes=10))
    save_file(TIMM_EFFICIENTNET_LITE.write(trained.state_dict()), place)
    out = tmp_path / "grafted.safetensors"
    result, _ = run("timm:tf_efficientnet_lite0.in1k", out=out)
    assert result["difference"] == 0.0
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load(out, "cpu", fold=False).model.eval()(x), trained.eval()(x), rtol=0, atol=1e-5)
    with pytest.raises(ExciteError, match="timm is not installed"):  # without the tag it is timm's own, untrained
        run("timm:tf_efficientnet_lite0")


def test_a_network_that_only_timm_has_is_grafted_with_its_weights_from_the_hub(timm, tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = hub.place_for("timm/test_resnet.r160_in1k") / "model.safetensors"
    place.parent.mkdir(parents=True)
    trained = randomised(timm.create_model("test_resnet", num_classes=10)).eval()
    save_file(trained.state_dict(), place)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(proof.open_network("timm:test_resnet.r160_in1k").model(x), trained(x))


# --- other people's networks in files ---------------------------------------------------------------------------------


def test_a_foreign_network_is_written_and_read_back(tmp_path):
    model = randomised(networks.TorchvisionStyle())
    gated = graft(model, "eca", at="layer2")
    nn.init.normal_(gated.layer2[0].bn3.gate.conv.weight)
    save_grafted(gated, tmp_path / "net.safetensors")
    again = load_grafted(tmp_path / "net.safetensors", networks.TorchvisionStyle()).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), gated(x))
        assert not torch.equal(again(x), model(x))
    with pytest.raises(
        ExciteError, match="does not say how to create its TorchvisionStyle; give the network without gates as model="
    ):
        load_grafted(tmp_path / "net.safetensors")
    with pytest.raises(ExciteError, match=r"a gate after 'layer2.0.bn3', which Plain does not have"):
        load_grafted(tmp_path / "net.safetensors", networks.Plain())
    with pytest.raises(ExciteError, match="another library's network with grafted gates"):
        load(tmp_path / "net.safetensors")
    with pytest.raises(ExciteError, match="has no grafted gates"):
        save_grafted(model, tmp_path / "none.safetensors")
    wider = networks.TorchvisionStyle()
    wider.fc = nn.Linear(64, 6)
    with pytest.raises(ExciteError, match=r"fc.bias has shape \(5,\) instead of \(6,\)"):
        load_grafted(tmp_path / "net.safetensors", wider)
    assert not any(isinstance(m, Grafted) for m in wider.modules())  # as it was before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: "{", "its header is damaged"),
        (lambda about: "[]", "its header is damaged"),
        (lambda about: json.dumps({**about, "places": [{}]}), "its header is damaged"),
        (lambda about: json.dumps({**about, "places": 3}), "its header is damaged"),
        (lambda about: json.dumps({**about, "format_version": 9}), "has format 9; this version reads 1"),
        (
            lambda about: json.dumps(
                {**about, "places": [about["places"][0], {**about["places"][1], "spec": {"name": "ecaa"}}]}
            ),
            "unknown gate 'ecaa'; did you mean 'eca'",
        ),
    ],
)
def test_a_damaged_header(tmp_path, change, message):
    save_grafted(graft(randomised(networks.TorchvisionStyle()), "eca"), tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["excite_graft"])
    save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"excite_graft": change(about)})
    model = networks.TorchvisionStyle()
    with pytest.raises(ExciteError, match=message):
        load_grafted(tmp_path / "bad.safetensors", model)
    assert not any(isinstance(m, Grafted) for m in model.modules())  # as it was before


def test_a_file_of_ours_is_no_foreign_one(ungated_run, tmp_path):
    with pytest.raises(
        ExciteError, match=r"not a grafted network of another library \(for excite's own: excite.load\)"
    ):
        load_grafted(Path(ungated_run) / "model.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ExciteError, match="not a readable safetensors file"):
        load_grafted(tmp_path / "x.safetensors")


def test_timm_by_name_with_local_weights(timm, tmp_path):
    model = randomised(timm.create_model("test_resnet", num_classes=1000))
    # As a training script under DistributedDataParallel writes it.
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "w.pth")
    out = tmp_path / "grafted.safetensors"
    result, _ = run("timm:test_resnet", weights=str(tmp_path / "w.pth"), out=out)
    assert result["difference"] == 0.0
    again = load(out).model.to(memory_format=torch.contiguous_format)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    with pytest.raises(ExciteError, match="every place is already gated"):
        run(out, at=["layer4"])
    with pytest.raises(ExciteError, match="timm has no model 'test_resnett'; did you mean"):
        run("timm:test_resnett")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ExciteError, match=r"does not fit ResNet: .* tensors are missing"):
        run("timm:test_resnet", weights=str(tmp_path / "other.pth"))
    small_one = randomised(timm.create_model("test_resnet", num_classes=4))
    torch.save(small_one.state_dict(), tmp_path / "four.pth")
    run("timm:test_resnet", weights=str(tmp_path / "four.pth"), out=tmp_path / "four.safetensors")
    four = load(tmp_path / "four.safetensors")
    assert (four.classes, four.model.num_classes) == (["0", "1", "2", "3"], 4)


@pytest.fixture(scope="module")
def timm_run(timm, tmp_path_factory):
    """A run of one of timm's networks on a few digits."""
    recipe = small("model.name=timm:test_resnet", "epochs=1", "ema_decay=0", "checkpoint.every_steps=null")
    return train(recipe, out=tmp_path_factory.mktemp("timm"), quiet=True)["run"]


def test_a_grafted_run_of_timms_is_a_checkpoint_like_any_other(timm_run, tmp_path):
    """Validated, classified with, exported, pruned, grafted again and trained on from."""
    out = tmp_path / "grafted.safetensors"
    result, _ = run(timm_run, at=["layer3", "layer4"], out=out)
    assert (result["difference"], len(result["places"])) == (0.0, 2)
    before, after = (package.validate(source, precision="fp32")[1] for source in (timm_run, out))
    assert after.confusion == before.confusion
    meta = read_own(out).meta
    gates = {"gate": {"name": "se", "identity": True}, "gate_at": ["layer3.0.bn3", "layer4.0.bn2"]}
    assert {k: v for k, v in meta["model"]["args"].items() if k in gates} == gates
    assert meta["recipe"]["model"] | {"options": {}} == read_own(timm_run).meta["recipe"]["model"]
    assert meta["recipe"]["model"]["options"] == gates

    run(out, out=tmp_path / "all.safetensors")  # the two places that are left
    assert len(read_own(tmp_path / "all.safetensors").meta["model"]["args"]["gate_at"]) == 4
    with pytest.raises(ExciteError, match="has other gates at 2 of its places"):
        run(out, gate="eca")

    write(prune(out, calibration=32, rounds=1, batch=2), tmp_path / "pruned", str(out))
    pruned = load(tmp_path / "pruned")  # gates that are 1 everywhere fold away without loss
    assert "gate" not in pruned.meta["model"]["args"]
    images = torch.randint(0, 256, (4, pruned.preprocessing.in_chans, 8, 8), dtype=torch.uint8)
    assert torch.equal(pruned.logits(images), load(timm_run).logits(images))


def test_training_goes_on_from_a_grafted_timm_model(timm_run, tmp_path):
    """From the grafted file, from the ungated run, and refused where the gates are of another function."""
    out = tmp_path / "grafted.safetensors"
    run(timm_run, out=out)
    settings = ["model.name=timm:test_resnet", "epochs=1", "checkpoint.every_steps=null"]
    for source, told in ((out, "all tensors"), (timm_run, "all but 4 gates, which start as the identity")):
        gated = "model.options={gate: {name: se, identity: true}}"
        result = train(small(*settings, gated, f"init_from={source}"), out=tmp_path / "runs", quiet=True)
        assert told in (Path(result["run"]) / "log.txt").read_text()
        assert len(load(result["run"]).meta["model"]["args"]["gate_at"]) == 4
    with pytest.raises(ExciteError, match="a different function of the same tensors"):
        train(small(*settings, "model.options={gate: se}", f"init_from={out}"), out=tmp_path / "runs", quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_at": ["layer1"]}, "gate_at is given for timm:"),
        ({"gate": "se", "features_only": True}, "with features_only takes no gate=: add gates with excite.graft"),
        ({"gate": "see"}, "unknown gate 'see'"),
        ({"gate": "se", "gate_at": ["layer9"]}, "no module of ResNet matches 'layer9'"),
        ({"fused": "on"}, "fused='on' does not apply to"),
    ],
    ids=str,
)
def test_gates_of_timms_models_by_name(timm, options, message):
    with pytest.raises(ExciteError, match=message):
        package.create_model("timm:test_resnet", image_size=32, **options)
