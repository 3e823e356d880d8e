"""A run folder whose files are damaged: one sentence that says what to do, or the file is made again."""

import json
import random
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from excite.compare import study
from excite.errors import ExciteError
from excite.runtime.environment import read_environment
from excite.trained.predictions import Predictions
from excite.training import checkpoint as ckpt
from excite.training import reporting
from excite.training.results import read_results
from excite.training.run_folder import Metrics, draw_curves, read_metrics
from excite.untrusted.npz import read_npz
from excite.weights.locate import STATE
from tests.bounded import bounded


def state_of(made: torch.optim.Optimizer, **changes: object) -> dict[str, object]:
    state = {"step": 3, "steps_per_epoch": 6, "optimizer": made.state_dict(), "scaler": {}, "best": None}
    return {**state, "seconds": 1.0, "fingerprint": "abc", **changes}


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    made = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    made.step()
    return made


def test_a_damaged_state_is_one_sentence(tmp_path, optimizer):
    path = tmp_path / STATE
    torch.save(state_of(optimizer), path)
    whole = path.read_bytes()
    assert ckpt.load_state(tmp_path)["step"] == 3
    rng, refused = random.Random(0), 0
    cases = [b"", bytes(len(whole)), whole[:-1], whole[:200], b"\x80\x02.", b"PK\x03\x04" * 20]
    for _ in range(60):
        at = rng.randrange(len(whole))
        cases.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    with bounded(256, 100):
        for content in cases:
            path.write_bytes(content)
            try:
                ckpt.load_state(tmp_path)
            except ExciteError as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017 - a bit between two entries may flip
                assert "is damaged (" in str(error)  # noqa: PT017
    assert refused > 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step is -1, but should be greater than or equal to 0"),
        ({"step": "3"}, "step is '3', but should be a valid integer"),
        ({"seconds": float("nan")}, "seconds is nan, but should be a finite number"),
        ({"optimizer": []}, r"optimizer is \[\], but should be a valid dictionary"),
        ({"best": {"step": 1}}, "best.top1 is missing"),
        ({"fingerprint": None}, "fingerprint is None"),
        ({"scaler": {"scale": float("inf")}}, "scaler.scale is inf"),
    ],
)
def test_one_changed_value_of_a_state(changes, message, tmp_path, optimizer):
    torch.save(state_of(optimizer, **changes), tmp_path / STATE)
    with pytest.raises(ExciteError, match=message):
        ckpt.load_state(tmp_path)


def test_an_optimizer_that_is_another(tmp_path, optimizer):
    good = optimizer.state_dict()
    ckpt.load_optimizer(optimizer, good, tmp_path, ["weight"], [])
    group, kept = good["param_groups"][0], good["state"][0]
    for wrong in (
        {},
        {"state": {}, "param_groups": []},
        {"state": {}, "param_groups": [{}]},
        {"state": {}, "param_groups": 3},
        {"state": {}, "param_groups": [{**group, "params": [0, 1]}]},
        {"state": {}, "param_groups": [{**group, "lr": "fast"}]},
        {"state": {}, "param_groups": [{**group, "lr": float("nan")}]},
        {"state": {}, "param_groups": [{**group, "nesterov": 3}]},
        {"state": {0: {**kept, "momentum_buffer": torch.zeros(7)}}, "param_groups": [group]},
        {"state": {0: 3}, "param_groups": [group]},
    ):
        with pytest.raises(ExciteError, match=r"the optimiser state in .* does not fit this run"):
            ckpt.load_optimizer(optimizer, wrong, tmp_path, ["weight"], [])


# --- caches and results ---------------------------------------------------------------------------------------------


def declared(shape: str, content: bytes) -> bytes:
    """An array of bytes whose header says so."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def test_an_array_that_says_it_is_huge_is_not_made(tmp_path):
    path = tmp_path / "x.npz"
    for shape, content in (("(1 << 40,)", b"x"), (f"({1 << 40},)", b"x"), ("(-1,)", b""), (f"({1 << 62}, 4)", b"x")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("logits.npy", declared(shape, content))
        with bounded(128), pytest.raises(ValueError, match=r".+"):
            read_npz(path)
        assert Predictions.read(path) is None
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", declared(f"({80 << 20},)", bytes(80 << 20)))
    with bounded(128), pytest.raises(ValueError, match="unpacks to far more"):
        read_npz(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="holds objects"):
        read_npz(path)
    np.savez_compressed(path, x=np.arange(5), y=np.zeros((2, 0), np.float32))
    assert read_npz(path)["x"].tolist() == [0, 1, 2, 3, 4]


def test_damaged_predictions_are_made_again(tmp_path):
    path = tmp_path / "predictions.npz"
    made = Predictions(
        logits=np.zeros((4, 3), np.float32),
        labels=np.array([0, 1, 2, 0]),
        positions=np.arange(4),
        names=("a", "b", "c", "d"),
        classes=("x", "y", "z"),
        fingerprint="f",
        weights="w",
        precision="fp32",
        preprocessing={"image_size": 8},
    )
    made.save(path)
    assert Predictions.read(path) is not None
    whole, rng = path.read_bytes(), random.Random(0)
    with bounded(128, 60):
        for _ in range(300):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged if rng.random() < 0.8 else damaged[: rng.randrange(len(damaged))])
            Predictions.read(path)  # None, or what was there
    for change in ({"labels": np.array([0, 1, 3, 0])}, {"labels": np.zeros(4)}, {"positions": np.array([-1, 0, 0, 0])}):
        Predictions(**{**made.__dict__, **change}).save(path)
        assert Predictions.read(path) is None


@pytest.mark.parametrize("content", ["", "[]", "{", "\0" * 50, "[" * 100_000, '{"last_top1": "x"}', '{"devices": [1]}'])
def test_damaged_results_say_how_they_are_written_again(content, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ExciteError, match=f"delete it, and `excite train --resume {tmp_path}` writes it again"):
        read_results(path)
    path.write_text('{"last_top1": 90.5, "devices": 1, "other": [1]}')
    assert read_results(path)["other"] == [1]


@pytest.mark.parametrize("content", ["[]", "{", '{"versions": 3}', '{"git": "x"}', '{"git": {"commit": 5}}'])
def test_a_damaged_environment_is_one_sentence(content, tmp_path):
    path = tmp_path / "environment.json"
    path.write_text(content)
    with pytest.raises(ExciteError, match=r"environment\.json .*delete it to go on without it"):
        read_environment(path)
    path.write_text('{"command": "excite train", "git": null, "other": [1]}')
    assert read_environment(path)["other"] == [1]


def test_lines_of_metrics_that_are_no_records_are_left_out(tmp_path):
    good = {"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.0, "lr": 0.1}
    bad = [
        3,
        None,
        [good],
        {},
        {**good, "step": "x"},
        {**good, "loss": [1]},
        {**good, "kind": 3},
        {**good, "epoch": None},
        {"kind": "eval", "step": 1, "epoch": 0.5, "loss": None, "top1": None},
    ]
    bad += [{**good, "seconds": "x"}, {**good, "not_finite": [1]}]
    del (cut := dict(good))["lr"]
    path: Path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(each) for each in (good, *bad, cut, good)]
    path.write_text("\n".join([*lines, "[" * 100_000, '{"kind": "tr']))
    assert read_metrics(path) == [good, good]
    assert Metrics(tmp_path).rewind(good["step"], good["step"]) == len(bad) + 2  # not the last: a kill may leave it
    assert read_metrics(path) == [good, good]
    assert Metrics(tmp_path).rewind(good["step"], good["step"]) == 0


def test_records_without_their_measures_are_read_by_whatever_reads_records(tmp_path):
    """A line that was damaged and is still a record: it has only what every record has."""
    least = [
        {"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.0, "lr": 0.1},
        {"kind": "eval", "step": 1, "epoch": 0.5, "loss": 1.0, "top1": 20.0},
    ]
    usual = {**least[0], "step": 2, "ms_per_step": 4.0, "warm_up": False, "compile_seconds": None, "seconds": 60.0}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*least, usual])))
    assert draw_curves(tmp_path, "x") is not None
    assert reporting._speed(SimpleNamespace(folder=tmp_path)) == (4.0, 0.0)
    read = study._curves(SimpleNamespace(records=read_metrics(tmp_path / "metrics.jsonl"), evaluations=[], label="x"))
    assert read["training"]["epoch"] == [0.5, 0.5]
