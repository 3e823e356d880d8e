"""`excite bench`: rows, turns, failures, tables, traces."""

import csv
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from excite.bench import build, floors, runner, timing, worker
from excite.bench.pipeline import PARTS, STAGES, measure_pipeline, pipeline_lines, pipeline_sheet, stage_lines, verdict
from excite.bench.report import COLUMNS, append_csv, caption, check_csv, make_rows, speed_sheet, summarise
from excite.bench.settings import Setting, make_settings, parse_list, parse_model
from excite.bench.timing import Workbench, training_step_seconds
from excite.cli import app
from excite.commands.bench import show_measured
from excite.errors import ExciteError, install_line
from excite.gates.squeeze_excite import squeeze_width
from excite.models import create_model
from excite.models.timm_models import import_timm
from excite.runtime.timing import time_steps
from tests.training.small import small

TINY = {"batch": 2, "image_size": 16, "warm_up": 2, "steps": 2}
CPU = torch.device("cpu")


# --- what a row is -------------------------------------------------------------------------------------------------


def test_a_model_may_carry_options_of_its_own():
    assert parse_model("seresnet50") == {"library": "excite", "model": "seresnet50"}
    found = parse_model("timm:seresnet50,precision=fp32,channels-last=false,batch=4")
    assert found == {"library": "timm", "model": "seresnet50", "precision": "fp32", "channels_last": False, "batch": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tim:seresnet50", "did you mean 'timm'"),
        ("timm:", "is not a model"),
        ("seresnet50,precison=fp32", "did you mean 'precision'"),
        ("seresnet50,fp32", "options of a row are batch, "),
        ("seresnet50,precision=bf6", "did you mean 'bf16'"),
        ("seresnet50,batch=0", "a whole number of at least 1"),
        ("seresnet50,image_size=24x0", "a whole number of at least 1, or height and width, as in 96x160"),
        ("seresnet50,fused_sgd=no", "write true or false"),
    ],
)
def test_a_wrong_row_is_explained(text, message):
    with pytest.raises(ExciteError, match=message):
        parse_model(text)


def test_rows_are_every_combination_once_and_own_options_win():
    lists = {"batch": parse_list("2,4", "batch"), "precision": parse_list("fp32,bf16", "precision"), "compile": [None]}
    rows = make_settings(["a", "timm:b,precision=fp32", "a"], lists, mode="infer", channels_last=False, seconds=1.0)
    assert [(r.name, r.batch, r.precision) for r in rows] == [
        *(("a", 2, "fp32"), ("a", 2, "bf16"), ("a", 4, "fp32"), ("a", 4, "bf16")),
        *(("timm:b", 2, "fp32"), ("timm:b", 4, "fp32")),
    ]
    assert {(r.mode, r.channels_last, r.compile, r.seconds) for r in rows} == {("infer", False, "off", 1.0)}
    (row,) = make_settings(["a,channels_last=true"], {}, channels_last=False)
    assert row.channels_last


# --- timing --------------------------------------------------------------------------------------------------------


def test_time_steps_counts_steps_and_blocks(monkeypatch):
    now, calls = {"time": 0.0}, []

    def step():
        calls.append(None)
        now["time"] += 1.0 + len(calls)  # 2, 3, 4 ... seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now["time"])
    assert time_steps(step, CPU, 3) == [2.0, 3.0, 4.0]
    assert time_steps(step, CPU, 4, per_sample=2) == [5.5, 7.5]
    assert len(calls) == 7


def test_summary_is_median_and_quartiles_within_the_samples():
    found = summarise([0.5, 1.0, 2.0], 8)
    assert found == {
        "images_per_second": 8.0,
        "lower_quartile": 6.0,
        "upper_quartile": 12.0,
        "ms_per_step": 1000.0,
    }
    assert summarise([0.5], 8)["lower_quartile"] == summarise([0.5], 8)["upper_quartile"] == 16.0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_timed_step_is_a_real_one(mode, precision):
    bench = Workbench(Setting("excite", "cifar_seresnet20", mode, precision=precision, **TINY))
    model = next(c.cell_contents for c in bench.step.__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outputs = []
    model.fc.register_forward_hook(lambda _, __, out: outputs.append(out.dtype))
    answer = bench.measure()
    low = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert outputs == [low] * 4  # 2 to warm up, 2 timed
    assert len(answer["seconds"]) == answer["steps"] == 2
    assert (answer["batch"], answer["image_size"], answer["precision"]) == (2, 16, precision)
    assert answer["compile_seconds"] is None
    assert answer["memory_gb"] > 0.05
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert ("conv1.weight" in changed) == ("bn1.running_mean" in changed) == (mode == "train")
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_rounds_last_about_as_long_as_asked(monkeypatch):
    bench = Workbench(Setting("excite", "cifar_resnet20", **{**TINY, "steps": None}, seconds=3.0))
    assert bench._plan(0.5) == (6, 1)
    assert bench._plan(100.0) == (3, 1)
    assert bench._plan(1e-6) == (1000, 1)
    bench.device = torch.device("meta")  # stands for an accelerator
    assert bench._plan(0.01) == (60 * 5, 5)


def test_training_step_seconds_is_there_for_scripts():
    model = create_model("cifar_resnet20")
    assert len(training_step_seconds(model, batch_size=2, image_size=8, num_classes=10, warm_up=1, steps=2)) == 2


def test_impossible_settings_are_told():
    for setting, message in (
        (Setting("excite", "cifar_seresnet20", device="cuda:1"), "takes a kind of device"),
        (Setting("excite", "geresnet50_thet"), "did you mean"),
    ):
        assert message in worker.answer(setting)["error"]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory"), MemoryError()],
)
def test_out_of_memory_is_a_sentence(monkeypatch, error):
    def measure(self):
        raise error

    monkeypatch.setattr(Workbench, "measure", measure)
    answer = worker.answer(Setting("excite", "cifar_seresnet20", **TINY))
    assert answer == {"error": "out of memory; use a smaller batch or image_size"}


def test_other_failures_are_not_called_out_of_memory(monkeypatch):
    monkeypatch.setattr(Workbench, "measure", lambda self: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        worker.answer(Setting("excite", "cifar_seresnet20", **TINY))


# --- turns ---------------------------------------------------------------------------------------------------------


def canned(seconds: list[float], **more) -> dict:
    return {
        "seconds": seconds,
        "steps": len(seconds),
        "compile_seconds": None,
        "memory_gb": 1.0,
        "batch": 2,
        "image_size": 16,
        "precision": "fp32",
        "devices": 1,
        "device": "a CPU (2 threads)",
        "torch": "2.13.0",
        "library_version": "1",
        **more,
    }


def test_rows_take_turns_and_a_failed_one_is_not_tried_again(monkeypatch):
    asked, lines = [], []

    def answer(setting, cache):
        asked.append(setting.model)
        return {"error": "no"} if setting.model == "b" else canned([0.1])

    monkeypatch.setattr(runner, "_in_process", answer)
    settings = [Setting("excite", name) for name in "abc"]
    answers = runner.run_in_turns(settings, 3, lines.append, "")
    assert asked == ["a", "b", "c", "a", "c", "a", "c"]
    assert [len(a) for a in answers] == [3, 1, 3]
    assert lines[:2] == ["round 1/3  a: 20.0 img/s", "round 1/3  b: no"]


def run_worker(monkeypatch, tmp_path, script: str) -> dict:
    """What the runner makes of an interpreter that does as ``script`` says."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv(runner.MINDSPORE_PYTHON, str(fake))
    return runner._in_process(Setting("mindcv", "seresnet18", threads=3), str(tmp_path))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "was killed, most likely because memory ran out"),
        ("echo one >&2; echo 'ValueError: two' >&2; exit 1", "its process failed: ValueError: two"),
        ("exit 3", "its process failed: exit status 3"),
    ],
)
def test_a_process_that_dies_is_a_failed_row(monkeypatch, tmp_path, script, message):
    assert message in run_worker(monkeypatch, tmp_path, script)["error"]


def test_mindspore_runs_in_its_own_environment_with_the_instructions_it_knows(monkeypatch, tmp_path):
    script = 'cat > "$0.asked"; echo noise; echo "{\\"seen\\": \\"$ONEDNN_MAX_CPU_ISA $OMP_NUM_THREADS $1\\"}"'
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    seen = run_worker(monkeypatch, tmp_path, script)["seen"].split()
    assert seen[:2] == ["AVX2", "3"]
    assert Path(seen[2]).is_file()
    assert json.loads((tmp_path / "python.asked").read_text())["setting"]["model"] == "seresnet18"
    monkeypatch.setenv(runner.MINDSPORE_PYTHON, str(tmp_path / "none"))
    assert "cannot be run" in runner._in_process(Setting("mindcv", "seresnet18"), "")["error"]


def test_missing_mindspore_is_a_sentence(monkeypatch):
    monkeypatch.setenv(runner.MINDSPORE_PYTHON, sys.executable)
    error = runner._in_process(Setting("mindcv", "seresnet18"), "")["error"]
    assert error.startswith("mindspore is not installed for ")
    assert "EXCITE_MINDSPORE_PYTHON" in error


# --- timm, by a stand-in -------------------------------------------------------------------------------------------

TIMM = """
import torch
import torchvision
from torch import nn

__version__ = "9.9"


def is_model(name):
    return name == "seresnet18"


def list_models():
    return ["seresnet18"]


def create_model(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    model.default_cfg, model.num_classes = {"input_size": (3, 24, 24)}, 7
    return model
"""
# As the real one beside a CPU build of torch, whose library it cannot load.
TORCHVISION = """
import torch

torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""


def test_one_image_and_a_norm_with_one_value_per_channel_is_a_sentence():
    one = {**TINY, "batch": 1}
    with pytest.raises(ExciteError, match=r"batch norm layer1.0.gate.gather.1 has only one value .*--infer"):
        Workbench(Setting("excite", "cifar_geresnet20_theta", precision="fp32", **one))
    Workbench(Setting("excite", "cifar_geresnet20_theta", mode="infer", precision="fp32", **one))
    Workbench(Setting("excite", "cifar_resnet20", precision="fp32", **one))


@pytest.mark.heavy
def test_timm_is_measured_even_beside_a_torchvision_that_does_not_load(tmp_path, monkeypatch):
    for name, text in (("timm", TIMM), ("torchvision", TORCHVISION)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.setenv("EXCITE_PEERS", str(tmp_path))
    row = Setting("timm", "seresnet18", batch=2, warm_up=2, steps=1)
    answer = runner._in_process(row, str(tmp_path))
    assert (answer.get("library_version"), answer.get("image_size")) == ("9.9", 24), answer
    answer = runner._in_process(Setting("timm", "seresnet81"), str(tmp_path))
    assert answer == {"error": "timm has no model 'seresnet81'; did you mean 'seresnet18'?"}


def test_missing_timm_is_a_sentence(monkeypatch):
    monkeypatch.delenv("EXCITE_PEERS", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ExciteError, match=rf"timm is not installed: {re.escape(install_line('timm'))}, or .* EXCITE_PEERS"
    ):
        import_timm()


# --- tables --------------------------------------------------------------------------------------------------------


def three_rows() -> list[dict]:
    settings = [Setting("excite", "a"), Setting("timm", "a"), Setting("excite", "b")]
    slow = canned([0.4, 0.4], precision="bf16", compile_seconds=7.0, memory_gb=0.5)
    again = canned([0.4, 0.2], precision="bf16", compile_seconds=1.0, memory_gb=2.0)
    return make_rows(settings, [[canned([0.1]), canned([0.1])], [slow, again], [{"error": "no"}]], "0.1.0-abc")


def test_rows_join_all_rounds():
    first, second, failed = three_rows()
    assert (first["images_per_second"], first["ratio"], first["rounds"], first["steps"]) == (20.0, 1.0, 2, 2)
    assert (second["images_per_second"], second["ratio"], second["rounds"], second["steps"]) == (5.0, 0.25, 2, 4)
    assert second["compile_seconds"] == 7.0  # of the round without a cache
    assert second["memory_gb"] == 2.0
    assert failed["error"] == "no"
    assert "ratio" not in failed


def test_img_per_second_counts_all_devices():
    (row,) = make_rows([Setting("excite", "a")], [[canned([0.1], devices=4)]], "")
    assert row["images_per_second"] == 80.0
    assert "batch 2 per device" in caption([row])
    assert "4 devices" in caption([row])


def test_the_table_is_markdown_and_names_what_differs():
    rows = three_rows()
    lines = speed_sheet(rows).markdown().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        "model",
        "precision",
        "img/s",
        "quartiles",
        "ms/step",
        "compile s",
        "memory GB",
        "img/s / first row's",
    ]
    assert all(set(c) <= {"-", ":"} for c in cells[1])
    assert cells[2] == ["a", "fp32", "20.00", "20.00 to 20.00", "100.00", "-", "1.00", "1.00"]
    assert cells[3] == ["timm:a", "bf16", "5.00", "5.00 to 6.25", "400.00", "7.0", "2.00", "0.25"]
    assert cells[4][0::7] == ["b", "failed"]
    assert len({len(line) for line in lines}) == 1
    assert caption(rows) == (
        "train, batch 2, 16x16, channels-last, fused SGD, compile off, a CPU (2 threads), torch 2.13.0, "
        "2 rounds in turns"
    )


def test_csv_grows_and_other_files_are_left_alone(tmp_path):
    path = tmp_path / "new" / "bench.csv"
    check_csv(path)
    for _ in range(2):
        append_csv(path, three_rows())
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [r["model"] for r in rows] == ["a", "timm:a"] * 2  # failures are no measurements
    assert rows[1]["excite"] == "0.1.0-abc"
    assert all(row[c] != "" for row in rows for c in COLUMNS if c not in ("threads", "compile_seconds"))
    other = tmp_path / "other.csv"
    other.write_text("date,price\n")
    with pytest.raises(ExciteError, match="has other columns"):
        append_csv(other, three_rows())
    assert other.read_text() == "date,price\n"
    with pytest.raises(ExciteError, match="cannot be used"):
        check_csv(tmp_path)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_the_command_measures_what_it_can(excite, tmp_path):
    words = ["cifar_seresnet20,batch=2", "cifar_resnet20", "timm:no_such", "--batch", "3", "--image-size", "8"]
    done = excite(
        "bench", *words, "--rounds", "1", "--steps", "1", "--warm-up", "2", "--csv", "b.csv", "--json", check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: timm:no_such: timm ")
    assert "Traceback" not in done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(r["model"], r["batch"], "error" in r) for r in rows] == [
        ("cifar_seresnet20", 2, False),
        ("cifar_resnet20", 3, False),
        ("timm:no_such", 3, True),
    ]
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give models to measure"),
        (["seresnet50", "--precision", "fp61"], "precision is 'fp61'; did you mean 'fp16'"),
        (["seresnet50", "--batch", "many"], "batch is 'many'"),
        (["tim:seresnet50"], "did you mean 'timm'"),
        (["--data", "digits-seresnet20", "--batch", "3"], "--batch is for models"),
        (["--data", "digits-seresnet20", "--infer"], "--infer is for models"),
        (["--data", "digits-seresnet20", "--device", "cpu"], "--device is for models"),
        (["--data", "digits-seresnet02"], "did you mean 'digits-seresnet20'"),
        (["--data", "digits-seresnet20", "epochz=3"], "did you mean 'epochs'"),
        (["seresnet50", "--csv", "."], ". is a folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(words, message, capsys, monkeypatch):
    from excite.cli import main

    monkeypatch.setattr(sys, "argv", ["excite", "bench", *words])
    monkeypatch.setattr(runner, "_in_process", lambda *_: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_examples_in_the_help_parse():
    bench = typer.main.get_command(app).commands["bench"]
    examples = [line.strip() for line in bench.help.splitlines() if "excite bench " in line]
    assert len(examples) >= 5
    for line in examples:
        context = bench.make_context("bench", shlex.split(line.split("excite bench ")[1]))
        if context.params["data"] is None:
            assert [parse_model(m) for m in context.params["models"]]


def test_the_version_is_the_packages_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not the current folder's
    version = build.source_version()
    assert version.startswith("0.")
    commit = subprocess.run(
        ["git", "-C", str(Path(build.__file__).parent), "rev-parse", "--short=10", "HEAD"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert commit in version
    monkeypatch.setattr(build.excite, "__file__", str(tmp_path / "__init__.py"))
    assert build.source_version() == build.excite.__version__


# --- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_profile_is_a_trace_and_the_ten_top_operators(tmp_path, capsys, monkeypatch):
    found = {}

    def in_process(setting, cache, trace=None):
        if trace is None:
            return canned([0.1])
        found.update(worker.answer(setting, trace))
        return found

    monkeypatch.setattr(runner, "_in_process", in_process)
    setting = Setting("excite", "cifar_seresnet20", precision="fp32", **TINY)
    show_measured(build.bench_models([setting], rounds=1, csv=None, profile=tmp_path / "traces"), as_json=False)
    (trace,) = (tmp_path / "traces").iterdir()
    assert trace.name == "cifar_seresnet20-train-b2-16-fp32.json"
    events = json.loads(trace.read_text())["traceEvents"]
    named = {e["name"] for e in events if e.get("ph") == "X" and e["dur"] >= 0}
    assert {"aten::conv2d", "aten::convolution_backward"} <= named
    printed = capsys.readouterr().out
    assert str(trace) in printed
    operators = found["operators"]
    assert len(operators) == 10
    assert [o["ms"] for o in operators] == sorted((o["ms"] for o in operators), reverse=True)
    assert 0 < sum(o["share"] for o in operators) <= 100.01
    by_name = {o["operator"]: o["calls"] for o in operators}
    assert by_name["aten::convolution_backward"] == 19  # a step, not a trace
    assert printed.count("| aten::convolution_backward") == 1
    assert "| part of the step " in printed
    *parts, whole = found["floors"]
    assert [row["part"] for row in (*parts, whole)] == [
        floors.MATRIX,
        floors.MAPS,
        floors.OPTIMIZER,
        floors.REST,
        "all",
    ]
    assert sum(row["measured_ms"] for row in parts) == pytest.approx(whole["measured_ms"])
    assert whole["ratio"] > 1


def test_each_row_has_a_trace_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "run_profile", lambda setting, trace, cache: {"operators": [], "floors": []})
    changes = ({}, {"fused": "off"}, {"fused_sgd": False}, {"channels_last": False}, {"threads": 1}, {"threads": 2})
    settings = [Setting("excite", "cifar_seresnet20", **change) for change in changes]
    row = {"batch": 2, "image_size": 16, "precision": "fp32"}
    found, failed = build._profiles(settings, [row] * len(settings), tmp_path, "")
    assert not failed
    assert len(found) == len(settings)
    assert {Path(trace).name for trace in found} >= {
        "cifar_seresnet20-train-b2-16-fp32.json",
        "cifar_seresnet20-train-b2-16-fp32-fused-off.json",
        "cifar_seresnet20-train-b2-16-fp32.2.json",
    }


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_work_of_a_step_is_counted(mode):
    """Operations and maps against formulas for this network, written out."""
    bench = timing.Workbench(Setting("excite", "cifar_seresnet20", mode=mode, precision="fp32", **TINY))
    work = floors._work(bench)
    n, (side, _), passes = bench.batch, bench.image_size, 3 if mode == "train" else 1
    widths, maps = (16, 32, 64), [side**2, (side // 2) ** 2, (side // 4) ** 2]
    macs, first = 0, 3 * 9 * 16 * maps[0]
    for i, (w, p) in enumerate(zip(widths, maps, strict=True)):
        entry = w * w if i == 0 else widths[i - 1] * w
        macs += 9 * p * (entry + 5 * w * w) + 3 * 2 * w * squeeze_width(w)
    # The image has no gradient, so that the first convolution lacks one of its three products.
    expected = 2 * n * (passes * (macs + 64 * 10) + min(passes, 2) * first)
    assert work["flops"] == expected
    values = n * sum(w * p for w, p in zip(widths, maps, strict=True))
    norms, blocks = floors.NORM_PASSES[mode], floors.BLOCK_PASSES[mode]
    assert work["map_values"] == norms * (6 * values + n * 16 * maps[0]) + blocks * 3 * values
    assert work["parameters"] == sum(p.numel() for p in bench.model.parameters())


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("aten::mkldnn_convolution", "convolutions, dense layers"),
        ("aten::addmm", "convolutions, dense layers"),
        ("NormApplyBackward", "norms, gates, additions, ReLU"),
        ("aten::native_batch_norm", "norms, gates, additions, ReLU"),
        ("excite::norm_grad_sums", "norms, gates, additions, ReLU"),
        ("aten::_fused_sgd_", "optimizer"),
        ("aten::max_pool2d_with_indices", "the rest"),
        ("aten::copy_", "the rest"),
    ],
)
def test_parts_of_a_step(operator, part):
    assert floors.part_of(operator) == part


def test_a_row_without_a_profile_keeps_its_measurement(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_in_process", lambda *_: canned([0.1]))
    table, settings = tmp_path / "b.csv", [Setting("mindcv", "seresnet18")]
    found = build.bench_models(settings, rounds=1, csv=table, profile=tmp_path / "traces")
    with pytest.raises(ExciteError, match=r"^mindcv:seresnet18: --profile only supports PyTorch models$"):
        show_measured(found, as_json=False)
    assert len(table.read_text().splitlines()) == 2
    assert "| mindcv:seresnet18 | 20.00 |" in capsys.readouterr().out


# --- the input pipeline --------------------------------------------------------------------------------------------


def test_pipeline_step_and_both_are_told_apart(monkeypatch):
    from excite.data.loader import TrainLoader

    real = TrainLoader._from_arrays

    def slow(self, *args):
        for batch in real(self, *args):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(TrainLoader, "_from_arrays", slow)
    steps = []
    monkeypatch.setattr("excite.bench.pipeline.train_step", lambda run, images, labels: steps.append(images.shape))
    result = measure_pipeline(small(), rounds=2, seconds=0.2, warm_up=2)
    pipeline, step, both = result["rows"]
    assert [row["part"] for row in result["rows"]] == list(PARTS)
    assert pipeline["ms_per_step"] >= 50
    assert both["ms_per_step"] >= 50
    assert step["ms_per_step"] > 0
    assert set(steps) == {(32, 1, 8, 8)}
    assert 0 < result["waiting"] <= 100


def test_the_real_step_is_timed_on_a_recipe():
    result = measure_pipeline(small("epochs=1"), rounds=1, seconds=0.1)
    for row in result["rows"]:
        assert row["images_per_second"] == pytest.approx(32_000 / row["ms_per_step"])
    assert "small, batch 32, fp32, " in pipeline_lines(result)[-1]


def test_the_stages_of_an_image_and_the_cores_that_a_device_needs(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.jpg")
    words = ["data.source=folder", f"data.root={tmp_path}", "data.mode=stream", "in_chans=3", "data.workers=0"]
    words += ["crop=random_resized", "batch_size=8", "limit_train=null", "limit_val=null"]
    result = measure_pipeline(small(*words), rounds=1, seconds=0.05)
    assert list(result["stages"]) == list(STAGES)
    assert result["stages"][STAGES[0]] > 0
    assert result["stages"][STAGES[1]] > 0
    assert result["stages"][STAGES[3]] == 0, "a CPU has its memory at hand"
    result["stages"] = dict(zip(STAGES, (100.0, 800.0, 100.0, 20.0, 50.0), strict=True))
    *stages, needed = stage_lines(result)
    assert stages[2] == "  decode, crop and resize it      800 us"
    assert needed == (
        "To keep the device busy, 20,000 images a second must be ready: 20.0 cores at 1,000 img/s a core. This recipe "
        "has no decoding workers."
    )
    assert all(len(line) <= 80 for line in stages)


def test_the_verdict_names_what_limits_the_training():
    rows = [{"part": part, **summarise([seconds], 32)} for part, seconds in zip(PARTS, (0.1, 0.4, 0.4), strict=True)]
    result = {"recipe": "r", "rows": rows, "waiting": 1.2, "device": "d", "processes": 1, "precision": "p", "batch": 32}
    result |= {"notes": [], "stages": {}, "workers": 0}
    table = pipeline_sheet(result).markdown()
    assert "| both together        |  80.0 |   80.0 to 80.0 |  400.00 |" in table
    assert verdict(result) == (
        "Training waits for data 1 % of the time: the step is the limit; the input pipeline alone is 4.0 times as fast."
    )
    rows[0] |= summarise([0.5], 32)
    assert "1 % of the time: the input pipeline is slower than the step" in verdict(result)


# --- slow ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_of_a_job_measure_one_data_parallel_whole(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "excite", "bench"]
    words = ["cifar_resnet20", "--batch", "2", "--image-size", "8", "--rounds", "2", "--seconds", "0.2", "--json"]
    done = subprocess.run([*command, *words, "--device", "cpu"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]  # printed once
    assert row["devices"] == 2
    assert row["images_per_second"] == pytest.approx(4000 / row["ms_per_step"])


@pytest.mark.slow
def test_compile_seconds_of_a_first_compilation(excite):
    words = ["cifar_resnet20", "--compile", "off,default", "--batch", "2", "--image-size", "8", "--rounds", "2"]
    plain, compiled = json.loads(excite("bench", *words, "--steps", "2", "--infer", "--json").stdout)["rows"]
    assert plain["compile_seconds"] is None
    assert compiled["compile_seconds"] > 0.5
    assert compiled["ms_per_step"] < 1000 * compiled["compile_seconds"]


def test_a_size_may_be_height_and_width():
    lists = {"image_size": parse_list("16,8x12,9x9", "image_size")}
    rows = make_settings(["cifar_seresnet20"], lists, mode="infer", batch=2, steps=1)
    assert [row.image_size for row in rows] == [16, (8, 12), 9]
    assert [Workbench(row).measure()["image_size"] for row in rows] == [16, "8x12", 9]
