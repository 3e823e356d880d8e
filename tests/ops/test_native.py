"""Building and loading the CPU kernels: in processes of their own, because they are loaded once in each."""

import os
import subprocess
import sys

import pytest

from excite.ops import native

SCRIPT = """
import torch
from torch import nn
from excite.ops import native, norm_relu
out = norm_relu(torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last), nn.BatchNorm2d(8))
print(out.shape[1], native.available(), native.build_seconds() is not None, native.why_not())
"""

needs_kernels = pytest.mark.skipif(not native.available(), reason=f"no CPU kernels: {native.why_not()}")


def run(tmp_path, **environment):
    env = {**os.environ, "EXCITE_CACHE": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_kernels
def test_built_once_then_found(tmp_path):
    assert run(tmp_path) == "8 True True None"
    assert run(tmp_path) == "8 True False None"
    assert len(list((tmp_path / "kernels").iterdir())) == 1  # and nothing else is left behind


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"EXCITE_KERNELS": "off"}, "EXCITE_KERNELS=off"),
        ({"CXX": "/no/such/compiler"}, "/no/such/compiler"),
        ({"CXX": "false"}, "false --version fails"),
    ],
)
def test_without_a_compiler_everything_works_in_plain_pytorch(tmp_path, environment, reason):
    told = run(tmp_path, **environment)
    assert told.startswith("8 False False ")
    assert reason in told


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    told = run(occupied)
    assert told.startswith("8 False False ")
    assert str(occupied) in told
