"""Building and loading the CPU kernels: in processes of their own, because they are loaded once in each."""

import shutil
import sys

import pytest

from excite.ops import native
from excite.runtime import compiled
from tests.ops.forked import run_forked, use_cpu_kernels

needs_kernels = pytest.mark.skipif(not native.available(), reason=f"no CPU kernels: {native.why_not()}")


def run(tmp_path, **environment):
    return run_forked(use_cpu_kernels, EXCITE_CACHE=tmp_path, **environment)


@needs_kernels
@pytest.mark.heavy
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


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are only built on Linux")
def test_a_compiler_with_arguments_that_writes_latin_1(tmp_path, monkeypatch):
    folder = tmp_path / "a folder"
    folder.mkdir()
    script = folder / "cc"
    script.write_bytes(
        b'#!/bin/sh\n[ "$1" = --version ] && echo f\xfcr mich && exit\necho kein G\xe4nsef\xfc\xdf >&2\nexit 1\n'
    )
    script.chmod(0o700)
    other = tmp_path / "cc"
    shutil.copy(script, other)
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    monkeypatch.delenv("EXCITE_KERNELS", raising=False)
    for wanted in (str(script), f"sh {other}"):
        monkeypatch.setenv("CXX", wanted)
        kernels = compiled.Kernels("excite.data", "jpeg_kernels.cpp", "test", (), lambda library: None)
        assert kernels.why_not() == f"{wanted} could not compile them: kein G\ufffdnsef\ufffd\ufffd"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    told = run(occupied)
    assert told.startswith("8 False False ")
    assert str(occupied) in told


@needs_kernels
@pytest.mark.heavy
def test_a_cache_that_others_can_write_to_is_not_used(tmp_path):
    """What they put there would run as part of this process; here it is a library that cannot even be loaded."""
    assert run(tmp_path) == "8 True True None"
    folder = tmp_path / "kernels"
    (kernels,) = folder.iterdir()
    whole = kernels.read_bytes()
    assert (folder.stat().st_mode & 0o777, kernels.stat().st_mode & 0o777) == (0o700, 0o700)

    kernels.write_bytes(b"planted")
    kernels.chmod(0o722)
    assert run(tmp_path) == "8 True True None", "compiled again, over the file that others could write to"
    assert kernels.read_bytes() == whole

    kernels.write_bytes(b"planted")
    folder.chmod(0o777)
    assert run(tmp_path) == "8 True True None", "compiled in a folder of this process's own"
    assert kernels.read_bytes() == b"planted"

    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert run(tmp_path) == "8 True True None"
    assert kernels.read_bytes() == b"planted"


@needs_kernels
def test_it_is_said_that_the_cache_is_not_used(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    private = compiled.private_folder()
    assert private.stat().st_mode & 0o777 == 0o700
    assert str(tmp_path) not in str(private)
    told = capfd.readouterr().err
    assert f"{tmp_path}/kernels, can be written to by others" in told
    assert "EXCITE_CACHE" in told
    assert len(told.splitlines()) == 1

    monkeypatch.setattr("os.geteuid", lambda: 12345)
    (tmp_path / "kernels").chmod(0o700)
    assert compiled.private_folder() != tmp_path / "kernels"
    assert "belongs to another user" in capfd.readouterr().err
