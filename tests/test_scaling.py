"""The plan for many devices: its arithmetic, against numbers worked out by hand, and the command."""

import json
import math
import re
import shlex
import subprocess
from dataclasses import replace as changed
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator

from excite.data import TrainLoader, open_data
from excite.data.catalog import SOURCES
from excite.data.cifar import LAYOUTS
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.scaling import (
    Assumptions,
    Workload,
    all_reduce_ms,
    measured_efficiency,
    parse_assumptions,
    plan,
    predict,
    read_measurement,
    workload,
)
from excite.training import steptime
from tests.data.test_sources import write_folder, write_idx
from tests.training.small import small

IMAGENET = "imagenet-seresnet50-100ep"


def work(*overrides: str, parameters: int = 25_000_000) -> Workload:
    """A workload with round numbers: 4 GMACs, 100 MB of gradients, 10 ms of fixed cost."""
    return Workload(load_recipe(IMAGENET, list(overrides)), 4.0, parameters, tensors=250, norms=50)


#: 24 TFLOP/s make one image of 4 GMACs (forward 1, backward 2) exactly 1 ms.
EVEN = Assumptions(tflops=24.0, jitter=0.0, decode_per_core=1e6)


def test_compute_and_efficiency_of_a_small_batch():
    one, eight = predict(work(), EVEN, 1), predict(work(), EVEN, 8)
    assert one.step == pytest.approx(10 + 1024)
    assert one.efficiency == pytest.approx(1)
    assert eight.compute == pytest.approx(10 + 128)
    assert eight.limit == "small batch"
    assert eight.efficiency == pytest.approx(1034 / (8 * eight.step))
    parts = predict(work("grad_accumulation=4"), EVEN, 8)
    assert parts.compute == pytest.approx(4 * 10 + 128)


def test_all_reduce_by_hand():
    assumed = Assumptions(node_gb_s=100, network_gb_s=10, node_latency_us=10, network_latency_us=20)
    assert all_reduce_ms(assumed, 1, 1e8) == 0
    # 100 MB over 100 GB/s are 1 ms; 8 devices send 2 x 7/8 of it, over 3 doublings.
    assert all_reduce_ms(assumed, 8, 1e8) == pytest.approx(2 * 7 / 8 * 1 + 2 * 3 * 0.01)
    assert all_reduce_ms(assumed, 32, 1e8) == pytest.approx(2 * 7 / 8 + 2 * 3 * 0.01 + 2 * 3 / 4 * 10 + 2 * 2 * 0.02)


def test_overlap_hides_all_but_what_sticks_out():
    slow = parse_assumptions(["tflops=24", "jitter=0", "decode_per_core=1e6", "node_gb_s=10", "node_latency_us=0"])
    hidden, shown = predict(work(), slow, 8), predict(work(), changed(slow, overlap=0.0), 8)
    whole = 2 * 7 / 8 * 10  # 100 MB at 10 GB/s
    assert shown.exposed == pytest.approx(whole)
    last = 4 * 25e6 - (1 << 20) - 3 * 25 * (1 << 20)  # a first bucket of 1 MiB, three of 25, and the rest
    assert hidden.exposed == pytest.approx(2 * 7 / 8 * last / 10e6)
    # Where sums take longer than the backward pass, they queue: all of the traffic counts from the first bucket on.
    flooded = changed(slow, node_gb_s=0.01)
    late = predict(work(), flooded, 8)
    first = 138 - 2 / 3 * 138 * (1 - (1 << 20) / 1e8)
    assert late.compute + late.exposed == pytest.approx(first + 2 * 7 / 8 * 10_000)
    assert late.limit == "all-reduce"


def test_data_sync_and_waiting():
    data = predict(work(), changed(EVEN, decode_per_core=10, cores_per_device=20), 8)
    assert data.data == data.step == pytest.approx(1000 * 128 / 160)  # 16 of the cores at most
    assert data.limit == "data loading"
    assert predict(work("data.mode=memory"), EVEN, 8).data == 0
    sync = predict(work("sync_bn=true"), changed(EVEN, node_latency_us=1000), 8)
    assert sync.sync_bn == pytest.approx(2 * 50 * all_reduce_ms(changed(EVEN, node_latency_us=1000), 8, 8192))
    assert sync.limit == "sync_bn"
    assert predict(work("sync_bn=true"), EVEN, 1).sync_bn == 0
    late = predict(work(), changed(EVEN, jitter=0.05), 8)
    assert late.waiting == pytest.approx(0.05 * math.sqrt(2 * math.log(8)) * 138)


def test_more_devices_are_never_slower_nor_more_efficient():
    rows = [predict(work(), Assumptions(), n, 64) for n in (1, 2, 8, 16, 64, 1024)]
    assert [r.images_per_second for r in rows] == sorted(r.images_per_second for r in rows)
    assert [r.efficiency for r in rows] == sorted((r.efficiency for r in rows), reverse=True)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ExciteError, match="a batch of 1024 cannot be divided among 3 devices"):
        predict(work(), EVEN, 3)
    assert predict(work(), EVEN, 3, 100).batch_size == 300
    result = plan(small(), devices="1,3")
    assert [row["devices"] for row in result["rows"]] == [1]
    assert "3 devices: a batch of 32 cannot be divided among" in result["notes"][0]


def test_the_workload_is_the_recipes():
    found = workload(load_recipe(IMAGENET))
    assert round(found.parameters / 1e6, 2) == 28.07  # ResNet-50's 25.56 M and gates without biases
    assert found.norms == 53
    assert found.gmacs == pytest.approx(4.09, abs=0.01)


def test_the_reference_card_gives_the_reference_speed():
    """The default rate is fitted to ModelZoo-PyTorch's 747.41 img/s at 128 images on one card."""
    result = plan(load_recipe(IMAGENET), devices="1", batch_per_device=128)
    assert result["rows"][0]["images_per_second"] == pytest.approx(747.41, rel=0.01)
    assert [entry["value"] > 0 and bool(entry["source"]) for entry in result["assumptions"]].count(True) == 12


def test_measured_runs_beside(tmp_path):
    for devices, ms in ((1, 500.0), (2, 280.0)):
        values = {"devices": devices, "batch_size": 32, "ms_per_step": ms, "device": "box"}
        (tmp_path / str(devices)).mkdir()
        (tmp_path / str(devices) / "results.json").write_text(json.dumps(values))
    runs = [str(tmp_path / "1"), str(tmp_path / "2" / "results.json")]
    result = plan(small(), devices="1,2,4", measured=runs)
    one, two, four = result["rows"]
    assert (one["measured"], two["measured"], four["measured"]) == (64.0, pytest.approx(32 / 0.28), None)
    assert two["measured_efficiency"] == pytest.approx(500 / 560)
    assert one["step"] == pytest.approx(500)  # the prediction starts from the run on one device
    assert result["assumptions"][0]["source"] == "fitted to the run on one device"
    both = [read_measurement(run) for run in runs]
    assert measured_efficiency(both[1], both[1:]) is None
    with pytest.raises(ExciteError, match=r"neither a finished run folder nor a results\.json"):
        plan(small(), measured=[str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"devices": "8;9"}, "--devices is '8;9', but must be a list of numbers above zero"),
        ({"assume": ["tflop=1"]}, "did you mean 'tflops'"),
        ({"assume": ["tflops=fast"]}, "give a number, such as tflops=19.2"),
        ({"assume": ["tflops=0"]}, "--assume tflops=0.0: must be above zero"),
        ({"assume": ["overlap=2"]}, "must be between 0 and 1"),
    ],
)
def test_mistakes(words, sentence):
    with pytest.raises(ExciteError, match=sentence):
        plan(small(), **words)


# --- what the data have ---------------------------------------------------------------------------------------------


def test_images_and_classes_are_those_that_a_training_opens(tmp_path):
    """Counted where the data are here: by the very function that opens them for training."""
    cases = [load_recipe("digits-seresnet20"), load_recipe("digits-seresnet20", ["limit_train=100"])]
    idx = write_idx(tmp_path / "idx", parts=("train",))  # no test part: a share is split off
    cases.append(load_recipe("digits-seresnet20", ["data.source=idx", f"data.root={idx}", "val_fraction=0.25"]))
    whole = write_folder(tmp_path / "one", count=10, classes=("ant", "bee", "cat"))
    for words in ([], ["val_fraction=0.4"], ["data.mode=memory"]):
        cases.append(load_recipe("folder-seresnet50", [f"data.root={whole}", "image_size=32", *words]))
    for recipe in cases:
        opened = open_data(recipe.data, recipe.augment)
        found = plan(recipe, devices="1")
        assert (found["images"], workload(recipe).count.classes) == (len(opened.train), len(opened.classes))
        assert not any("assuming" in note for note in found["notes"])


def test_what_is_assumed_is_said(tmp_path):
    for words, images, classes, sentence in [
        (
            ["digits-seresnet20", "data.source=idx"],
            60_000,
            10,
            "data.root is not given: assuming 60,000 training images of 10",
        ),
        (["cifar10-seresnet20", "data.source=cifar100"], 50_000, 100, "assuming 50,000 training images of 100 classes"),
        ([IMAGENET], 1_281_167, 1000, "assuming 1,281,167 training images of 1,000 classes, as in ImageNet"),
        (
            [IMAGENET, "data.root=/no/such/place"],
            1_281_167,
            1000,
            "data.root=/no/such/place does not exist: assuming 1,281,167",
        ),
        ([IMAGENET, "data.root=s3://bucket/images"], 1_281_167, 1000, "is an address, not fetched: assuming 1,281,167"),
        ([IMAGENET, "limit_train=5000"], 5000, 1000, "5,000 training images"),
    ]:
        recipe = load_recipe(words[0], words[1:])
        found = plan(recipe, devices="1")
        assert (found["images"], workload(recipe).count.classes) == (images, classes)
        assert sentence in found["notes"][0]
    assert plan(load_recipe(IMAGENET), devices="1", images=1000)["images"] == 1000
    assert not any("assuming" in note for note in plan(load_recipe(IMAGENET), devices="1", images=10**6)["notes"])


def test_what_is_assumed_of_cifar_is_what_its_reader_expects():
    assert {kind: layout[-1] for kind, layout in LAYOUTS.items()} == {k: SOURCES[k].assumed.classes for k in LAYOUTS}


def test_hours_are_of_whole_batches():
    """As TrainLoader has them: 1437 images in batches of 64 are 22 steps, in batches of 2048 a single one."""
    for batch, steps in ((64, 22), (1437, 1), (1438, 1), (2048, 1)):
        recipe = load_recipe("digits-seresnet20", [f"batch_size={batch}"])
        data = open_data(recipe.data, recipe.augment)
        loader = TrainLoader(
            data.train, batch_size=batch, seed=0, device="cpu", augment=recipe.augment, data_config=recipe.data
        )
        result = plan(recipe, devices="1")
        assert loader.steps_per_epoch == steps
        (row,) = result["rows"]
        assert row["hours"] == pytest.approx(recipe.train.epochs * steps * row["step"] / 3.6e6)
        assert any("fewer than a batch of 2,048" in note for note in result["notes"]) == (batch == 2048)


def test_a_small_folder_is_decoded_before_training(tmp_path):
    root = write_folder(tmp_path / "few")
    few = load_recipe("folder-seresnet50", [f"data.root={root}", "augment.crop=none"])
    assert workload(few).in_memory
    assert not workload(load_recipe("folder-seresnet50", [f"data.root={root}"])).in_memory  # random crops of files
    assert not workload(load_recipe("folder-seresnet50", ["augment.crop=none"])).in_memory  # ImageNet is assumed


def test_the_command(excite):
    (excite.cwd / "small.yaml").write_text(small().to_yaml())
    rows = json.loads(excite("scale", "small.yaml", "--devices", "1,2", "--price", "2", "--json").stdout)["rows"]
    assert rows[1]["cost"] == pytest.approx(2 * 2 * rows[1]["hours"])
    shown = excite("scale", "small.yaml", "--devices", "1,2").stdout
    assert "efficiency %" in shown
    assert "network_gb_s" in shown


@pytest.mark.slow
def test_measuring_on_this_machine(excite):
    (excite.cwd / "small.yaml").write_text(small().to_yaml())
    words = ["--measure", "1,2", "--batch-per-device", "8", "--devices", "1,2,4", "--steps", "4", "--json"]
    result = json.loads(excite("scale", "small.yaml", *words).stdout)
    one, two, four = result["rows"]
    assert one["measured"] > 0
    assert two["measured_efficiency"] == pytest.approx(two["measured"] / 2 / one["measured"])
    assert four["measured"] is None
    sources = {entry["name"]: entry["source"] for entry in result["assumptions"]}
    assert all("measured now" in sources[name] for name in ("tflops", "node_gb_s", "node_latency_us", "overlap"))


@pytest.fixture
def clock(monkeypatch):
    """The time of ``steptime``: a list whose only number the test moves on."""
    now = [100.0]
    monkeypatch.setattr("excite.runtime.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_the_steps_after_the_warm_up_are_timed_in_the_slowest_process(monkeypatch, clock):
    """Step k takes 2**k s here, and in another process they come in the reverse order."""
    seen, classes = [], []

    def step(run, images, labels):
        assert run.model.num_classes == len(run.data.classes)
        classes.append(run.model.num_classes)
        clock[0] += 2.0 ** len(seen)
        seen.append((run.step, images, labels))

    monkeypatch.setattr(steptime, "train_step", step)
    monkeypatch.setattr(Accelerator, "gather", lambda self, tensor: torch.cat([tensor, tensor.flip(1)]))
    recipe = small("batch_size=6", "image_size=10", "epochs=4", "data.in_chans=3")
    found = steptime.time_steps(recipe, steps=4, warm_up=2, classes=3)
    assert found["seconds"] == [8.0, 8.0, 16.0, 32.0]
    assert {name: found[name] for name in ("devices", "batch_size", "precision")} == {
        "devices": 1,
        "batch_size": 6,
        "precision": "fp32",
    }
    assert "latency_us" not in found
    # The data is one batch, so that the schedule has 4 steps, and it stays in the last of them.
    assert [number for number, *_ in seen] == [0, 1, 2, 3, 3, 3]
    for _, images, labels in seen:
        assert (images.shape, labels.shape, images.dtype) == ((6, 3, 10, 10), (6,), torch.uint8)
        assert images.float().std() > 50  # noise, not a constant that a kernel might be quick at
        assert set(labels.tolist()) <= {0, 1, 2}
    assert set(classes) == {3}
    seen.clear()
    classes.clear()
    assert len(steptime.time_steps(recipe, steps=1)["seconds"]) == 1
    assert classes == [10] * (3 + 1)  # of the recipe's data
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    assert steptime.time_steps(recipe, steps=1, warm_up=0, classes=3) == {}


def test_the_time_of_an_all_reduce_is_latency_and_bandwidth(monkeypatch, clock):
    """Messages take 300 us and 4 GB/s, but for a few that are held up; what a process waits before is no part of it."""
    sizes = []

    def all_reduce(message):
        sizes.append(message.numel() * message.element_size())
        clock[0] += 300e-6 + sizes[-1] / 4e9 + (5.0 if len(sizes) % 9 in (0, 1, 2, 5) else 0.0)

    def wait():
        clock[0] += 1.0

    monkeypatch.setattr(steptime.distributed, "all_reduce", all_reduce)
    run = SimpleNamespace(device=torch.device("cpu"), accelerator=SimpleNamespace(wait_for_everyone=wait))
    found = steptime._time_all_reduce(run)
    assert found == {"latency_us": pytest.approx(300 + 4096 / 4e3), "gb_per_second": pytest.approx(4.0)}
    assert sizes == [4096] * 9 + [1 << 24] * 9
    monkeypatch.setattr(steptime.distributed, "all_reduce", lambda message: None)
    assert steptime._time_all_reduce(run)["gb_per_second"] > 1e6  # a clock too coarse is no division by zero


# --- the manifests of docs/scaling.md ---------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_the_slurm_script_is_one():
    text = block("bash")
    bash = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (bash.returncode, bash.stderr) == (0, "")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"  # torchrun starts the processes of a machine
    assert f"--nproc-per-node {options['gpus-per-node']} " in text
    assert 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK"' in text  # since Slurm 22.05 a step does not inherit it
    words = shlex.split(text[text.index("excite train") :])[2:]
    load_recipe(words[0], words[1 : words.index("--run-dir")])


def test_the_kubernetes_manifest_has_the_fields_of_a_trainjob():
    """Those of kubeflow/trainer 2.4, pkg/apis/trainer/v1alpha1/trainjob_types.go, which refuses all others."""
    job = yaml.safe_load(block("yaml"))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec = job["spec"]
    assert spec.keys() == {"runtimeRef", "trainer", "runtimePatches"}
    assert spec["trainer"].keys() <= {
        "image",
        "command",
        "args",
        "env",
        "numNodes",
        "resourcesPerNode",
        "numProcPerNode",
    }
    (patch,) = spec["runtimePatches"]
    assert patch.keys() == {"manager", "trainingRuntimeSpec"}
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container.keys() <= {"name", "env", "volumeMounts", "securityContext"}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    args = spec["trainer"]["args"]
    recipe, *words = args[args.index("train") + 1 :]
    load_recipe(recipe, [word for word in words if not word.startswith("--")])
    root = [word.partition("=")[2] for word in words]
    assert all(any(path.startswith(m["mountPath"]) for m in container["volumeMounts"]) for path in root)
    assert spec["trainer"]["numProcPerNode"] == spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
