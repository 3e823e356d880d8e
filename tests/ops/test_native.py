"""Building and loading the CPU kernels: in processes of their own, because they are loaded once in each."""

import pytest

from excite.ops import native
from tests.ops.forked import run_forked, use_cpu_kernels

needs_kernels = pytest.mark.skipif(not native.available(), reason=f"no CPU kernels: {native.why_not()}")


def run(tmp_path, **environment):
    return run_forked(use_cpu_kernels, EXCITE_CACHE=tmp_path, **environment)


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
