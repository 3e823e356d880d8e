"""Reading checkpoints of other systems: what they hold comes out as it is, and nothing else comes in."""

import argparse
import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from excite.errors import ExciteError
from excite.untrusted.raw import Damaged
from excite.weights import mindspore, pytorch
from excite.weights.crc32c import crc32c
from excite.weights.leveldb import _uncompressed
from excite.weights.read import read_weights
from excite.weights.wire import fields

from . import writers

ROOT = Path(os.environ.get("EXCITE_FIXTURES", Path(__file__).resolve().parents[3] / "shared" / "fixtures"))
with_fixtures = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference checkpoints at {ROOT} (EXCITE_FIXTURES)")
VARIANTS = ROOT / "mindspore" / "variants"

TENSORS = {
    "layer1.weight": torch.arange(24.0).view(2, 3, 4) - 7,
    "layer1.bias": torch.tensor([0.5, -1.25]),
    "steps": torch.tensor(41),
    "half": torch.tensor([[1.5], [-2.0]], dtype=torch.float16),
    "none": torch.zeros(0, 3),
}


def same(read, written):
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype, name
        assert read[name].shape == tensor.shape, name
        assert torch.equal(read[name], tensor), name


def refused(path, pattern, **arguments):
    with pytest.raises(ExciteError, match=pattern) as caught:
        read_weights(path, **arguments)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or path.name in str(caught.value)
    return str(caught.value)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


# --- MindSpore ------------------------------------------------------------------------------------------------------

DTYPES = {
    "bf16": torch.bfloat16,
    "bool": torch.bool,
    "c64": torch.complex64,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "i8": torch.int8,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
    "u8": torch.uint8,
}


@with_fixtures
@pytest.mark.parametrize("name", DTYPES)
def test_mindspore_types(name):
    stored = read_weights(VARIANTS / f"dtype_{name}.ckpt")
    assert stored.format == "MindSpore checkpoint"
    same(stored.tensors, {name: torch.arange(6).view(2, 3).to(DTYPES[name])})


@with_fixtures
def test_mindspore_variants_are_all_tried():
    kinds = {path.stem.removeprefix("dtype_") for path in VARIANTS.glob("dtype_*.ckpt")}
    assert kinds == DTYPES.keys()
    assert mindspore.DTYPES.keys() >= {"Float32", "BFloat16"}


PLAIN = {
    "w": torch.arange(6.0).view(2, 3),
    "scalar0d": torch.tensor(3.5),
    "one1d": torch.tensor([3.5]),
}


@with_fixtures
@pytest.mark.parametrize(
    ("name", "kind", "crc"),
    [
        ("plain.ckpt", "MindSpore checkpoint", False),
        ("crc.ckpt", "MindSpore checkpoint", True),
        ("st.safetensors", "MindSpore safetensors", False),
        ("st_crc.safetensors", "MindSpore safetensors", True),
    ],
)
def test_mindspore_forms(name, kind, crc):
    stored = read_weights(VARIANTS / name)
    assert (stored.format, stored.metadata["crc"]) == (kind, crc)
    same(stored.tensors, PLAIN)


@with_fixtures
@pytest.mark.parametrize("name", ["crc.ckpt", "st_crc.safetensors"])
def test_mindspore_check_sum_covers_the_last_tensor(name, tmp_path):
    content = bytearray((VARIANTS / name).read_bytes())
    value = struct.pack("<f", 3.5)
    content[content.rindex(value)] ^= 1
    refused(written(tmp_path, name, content), "checksum does not match its content")


@with_fixtures
def test_mindspore_appended_values():
    stored = read_weights(VARIANTS / "append.ckpt")
    assert stored.metadata["strings"] == {"note": "héllo"}
    more = {"epoch_num": torch.tensor(7), "lr": torch.tensor(0.25), "flag": torch.tensor(True)}
    same(stored.tensors, PLAIN | more)


@with_fixtures
@pytest.mark.parametrize("cipher", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_mindspore_encrypted(cipher):
    refused(VARIANTS / f"enc_{cipher}.ckpt", rf"encrypted MindSpore checkpoint \({cipher}\): decrypt it with")


@with_fixtures
def test_mindspore_network():
    names = json.loads((ROOT / "mindspore" / "seresnet18.names.json").read_text())
    stored = read_weights(ROOT / "mindspore" / "seresnet18.ckpt")
    pairs = [(n["name"], n["shape"]) if isinstance(n, dict) else tuple(n) for n in names]
    assert [(name, list(tensor.shape)) for name, tensor in stored.tensors.items()] == [(n, list(s)) for n, s in pairs]
    assert all(bool(tensor.isfinite().all()) for tensor in stored.tensors.values())


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("crc", [False, True])
def test_mindspore_cut_tensors(pieces, crc, tmp_path):
    path = written(tmp_path, "net.ckpt", writers.mindspore(TENSORS, pieces, crc))
    same(read_weights(path).tensors, TENSORS)


FOUR = writers.raw(torch.arange(4.0))


@pytest.mark.parametrize(
    ("entries", "pattern"),
    [
        ([("w", "Float32", (4,), FOUR[:8])], "'w' ends 8 bytes early"),
        ([("w", "Float32", (4,), FOUR[:8]), ("v", "Float32", (4,), FOUR[8:])], "'w' ends 8 bytes early"),
        ([("w", "Float32", (4,), FOUR[:8]), ("w", "Float32", (2, 2), FOUR[8:])], "'w' ends 8 bytes early"),
        ([("w", "Float32", (4,), FOUR)] * 2, "'w' is there twice"),
        ([("w", "Float32", (3,), FOUR)], "takes 12 bytes, but has 16"),
        ([("w", "Float32", (-1, 4), FOUR)], "impossible shape"),
        ([("w", "Float32", (1 << 62, 1 << 62), FOUR)], "impossible shape"),
        ([("w", "Float32", (0, 1 << 62), b"")], "impossible shape"),
        ([("w", "Float32", (1,) * 40, FOUR[:4])], "40 dimensions"),
        ([("w", "Bool", (4,), b"\0\1\2\0")], "neither 0 nor 1"),
        ([("w", "Float7", (4,), FOUR)], r"of type 'Float7', which is not known \(known: Bool, .*, str\)"),
        ([("w", "str", (0,), b"abc")], "not UTF-32"),
    ],
)
def test_mindspore_contradictions(entries, pattern, tmp_path):
    content = b"".join(writers.mindspore_entry(*entry) for entry in entries)
    refused(written(tmp_path, "net.ckpt", content), pattern)


@pytest.mark.parametrize(
    ("entry", "pattern"),
    [
        (writers.text(1, "w") + writers.text(1, "v"), "two of tag"),
        (writers.text(1, "w"), "no tag or no tensor"),
        (writers.text(1, "w") + writers.text(2, writers.text(3, FOUR)), "'w' has no type"),
        (writers.text(1, "w") + writers.text(2, writers.text(2, "Float32") * 2), "two of tensor_type"),
        (writers.text(1, "w") + writers.text(2, writers.number(9, 1)), "unknown field 9"),
    ],
)
def test_mindspore_odd_entries(entry, pattern, tmp_path):
    refused(written(tmp_path, "net.ckpt", writers.text(1, entry)), pattern)


def test_mindspore_map_tensors(tmp_path):
    content = writers.text(1, writers.text(1, "table") + writers.text(3, b""))
    refused(written(tmp_path, "net.ckpt", content), "map tensor")


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        (writers.text(1, "abc")[:-1], "claims to have 3 bytes, but 2 are left"),
        (writers.text(1, "abc")[:1], "in the middle of a number"),
        (writers.number(1, 300)[:-1], "in the middle of a number"),
        (b"\x0d\0\0\0\0\x0d\0\0", "in the middle of a number"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than 64 bits"),
        (b"\x02\x00", "the number 0"),
        (b"\x0b", "wire type 3"),
    ],
)
def test_protobuf_is_checked(message, pattern):
    with pytest.raises(Damaged, match=pattern):
        list(fields(memoryview(message)))


# --- TensorFlow -----------------------------------------------------------------------------------------------------

MANY = {f"block_{k // 3}/conv/{'abc'[k % 3]}": torch.randn(k % 4 + 1, 3) for k in range(40)}
VARIED = {
    **TENSORS,
    "flags": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j, -3j], dtype=torch.complex64),
}


@pytest.mark.parametrize("options", [{}, {"shards": 3}, {"compressed": True}, {"big_endian": True}])
def test_tensorflow_forms(options, tmp_path):
    for name, tensors in (("many", MANY), ("varied", VARIED)):
        prefix = writers.tensorflow(tmp_path / name, tensors, **options)
        stored = read_weights(prefix)
        assert (stored.format, stored.path) == ("TensorFlow checkpoint", prefix)
        assert stored.metadata["shards"] == options.get("shards", 1)
        assert list(stored.tensors) == sorted(tensors)
        same(stored.tensors, tensors)


def test_tensorflow_names(tmp_path):
    """A prefix, any of its files, the folder, and the folder's ``checkpoint`` file mean the same checkpoint."""
    prefix = writers.tensorflow(tmp_path / "model.ckpt-30", TENSORS)
    state = tmp_path / "checkpoint"
    for content in (
        'model_checkpoint_path: "model.ckpt-30"\n',
        f'model_checkpoint_path: "{prefix}"\nall_model_checkpoint_paths: "gone"\n',
        'model_checkpoint_path: "/where/it/was/made/model.ckpt-30"\n',
    ):
        state.write_text(content)
        files = [prefix.with_name(f"{prefix.name}{end}") for end in (".index", ".data-00000-of-00001")]
        for path in (prefix, *files, tmp_path, state):
            assert read_weights(path).path == prefix, path
    state.write_text('model_checkpoint_path: "model.ckpt-31"\n')
    refused(tmp_path, "names the checkpoint 'model.ckpt-31', which is not in the same folder")
    state.unlink()
    assert read_weights(str(tmp_path)).path == prefix
    writers.tensorflow(tmp_path / "model.ckpt-40", TENSORS)
    refused(tmp_path, r"2 TensorFlow checkpoints: name one of them \(model.ckpt-30, model.ckpt-40\)")


@with_fixtures
def test_tensorflow_network():
    stored = read_weights(ROOT / "tensorflow" / "small" / "seresnet20.ckpt")
    assert stored.tensors["conv2d/kernel"].shape == (3, 3, 3, 16)
    used = sum(tensor.nbytes for tensor in stored.tensors.values())
    assert used == (ROOT / "tensorflow" / "small" / "seresnet20.ckpt.data-00000-of-00001").stat().st_size


def test_tensorflow_strings_are_named(tmp_path):
    used = sum(tensor.nbytes for tensor in TENSORS.values())
    text = b"\1\0\0\0\0x"
    extra = [(b"_CHECKPOINTABLE_OBJECT_GRAPH", writers.bundle_entry(7, (), 0, used, text))]
    stored = read_weights(writers.tensorflow(tmp_path / "net", TENSORS, extra=extra, tail=text))
    assert stored.metadata["not_tensors"] == {"_CHECKPOINTABLE_OBJECT_GRAPH": "string"}
    same(stored.tensors, TENSORS)


def entry(dtype=1, shape=(2,), shard=0, offset=16, content=FOUR[:8]):
    return [(b"w", writers.bundle_entry(dtype, shape, shard, offset, content))]


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        (entry(shape=(3,)), "'w' of shape .3,. takes 12 bytes, but has 8"),
        (entry(offset=1 << 40), "past the end of its data file"),
        (entry(content=FOUR * 100), "past the end of its data file"),
        (entry(shard=1), "file 1 of 1"),
        (entry(offset=-1), "file 0 of 1"),
        (entry(dtype=99), "the unknown TensorFlow type 99"),
        (entry(shape=(1 << 40, 1 << 40)), "impossible shape"),
        ([(b"w", writers.number(1, 1) + writers.text(7, b""))], "'w' in slices"),
        ([(b"\0\1w", b"")], "a variable in slices"),
        ([(b"w%d" % k, writers.bundle_entry(1, (2,), 0, 8, FOUR[:8])) for k in range(9)], "overlap each other"),
        ([(b"w" * 5000, b"")], "does not fit its block"),
        ([(b"", b"")], "0 data files"),
        ([(b"", writers.number(1, 1 << 40))], "data files"),
    ],
)
def test_tensorflow_contradictions(extra, pattern, tmp_path):
    tensors = {"v": torch.arange(4.0)}
    both = {**tensors, "w": torch.arange(2.0)}
    same(read_weights(writers.tensorflow(tmp_path / "good", tensors, extra=entry(), tail=FOUR[:8])).tensors, both)
    refused(writers.tensorflow(tmp_path / "net", tensors, extra=extra, tail=FOUR[:8]), pattern)


@pytest.mark.parametrize("names", [(b"b", b"a"), (b"a", b"a")])
def test_tensorflow_names_are_in_order(names, tmp_path):
    """A table with a name twice would let one tensor stand for another."""
    prefix = writers.tensorflow(tmp_path / "net", {"v": torch.arange(4.0)})
    pairs = [(b"", writers.number(1, 1)), *((name, writers.bundle_entry(1, (4,), 0, 0, FOUR)) for name in names)]
    (tmp_path / "net.index").write_bytes(writers.table(pairs))
    refused(prefix, "its names are not in order")


def test_tensorflow_check_sums(tmp_path):
    prefix = writers.tensorflow(tmp_path / "net", TENSORS, shards=2)
    data = tmp_path / "net.data-00001-of-00002"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(prefix, "has a wrong checksum")
    data.write_bytes(whole[:-1])
    refused(prefix, "past the end of its data file, which may be cut off")
    data.unlink()
    refused(prefix, "net.data-00001-of-00002 is missing beside its .index file")
    index = tmp_path / "net.index"
    content = bytearray(index.read_bytes())
    content[20] ^= 1
    index.write_bytes(content)
    refused(prefix, "the block at byte 0 has a wrong checksum")


def test_tensorflow_index_under_another_name(tmp_path):
    writers.tensorflow(tmp_path / "net", TENSORS)
    refused((tmp_path / "net.index").rename(tmp_path / "net.ckpt"), "V1 checkpoint")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (writers.varint(1 << 40) + b"\0x", f"claims to expand to {1 << 40}"),
        (writers.varint(4) + b"\x0cab", "ends early"),
        (writers.varint(4) + b"\xf0", "ends early"),
        (writers.varint(8) + b"\x0cabcd\x0e\x05\0", "refers to data that is not there"),
        (writers.varint(8) + b"\x0cabcd\x0e\0\0", "refers to data that is not there"),
        (writers.varint(9) + b"\x0cabcd\x0e\x04\0", "has a wrong length"),
        (writers.varint(3) + b"\x0cabcd", "has a wrong length"),
    ],
)
def test_snappy_is_checked(content, pattern, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "snappy", lambda data: content)
    refused(writers.tensorflow(tmp_path / "net", TENSORS, compressed=True), pattern)


def test_snappy_elements():
    """A long literal, and copies of the three kinds, one of which overlaps what it makes (format_description.txt)."""
    long = bytes(range(200))
    head = writers.varint(200 + 4 + 9 + 64) + b"\xf0\xc7" + long
    copies = b"\x01\x04" + b"\x22\x01\0" + b"\xff\x01\0\0\0"
    unfolded = long + long[196:] + long[199:] * 9 + long[199:] * 64
    assert bytes(_uncompressed(memoryview(head + copies))) == unfolded


def test_crc32c():
    """RFC 3720, B.4, and lengths around the lanes' borders."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    data = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    for length in (0, 1, 3, 4, 5, 63, 64, 65, 127, 128, 129, 191, 200, 449, 1000, 4999):
        assert crc32c(data[:length]) == writers.crc32c(data[:length]), length
    long = data * 60  # more lanes than run side by side
    assert crc32c(long) == writers.crc32c(long)


# --- Caffe ----------------------------------------------------------------------------------------------------------


def caffe_layers(v1=False):
    convolution = writers.number(1, 4) + writers.number(2, 0) + writers.number(3, 1) + writers.number(4, 3)
    convolution += writers.text(6, writers.varint(2))  # stride, packed
    torch.manual_seed(0)
    layers = [
        ("conv1", "Convolution", ["data"], ["conv1"], 10 if v1 else 106, convolution, [torch.randn(4, 3, 3, 3)]),
        ("relu", "ReLU", ["conv1"], ["conv1"], None, b"", []),
        ("fc/8", "InnerProduct", ["conv1"], ["fc"], 17 if v1 else 117, b"", [torch.randn(5, 4), torch.randn(5)]),
    ]
    if not v1:
        norm = writers.number(1, 1) + writers.varint(3 << 3 | 5) + struct.pack("<f", 0.5)
        layers.append(("bn", "BatchNorm", ["fc"], ["fc"], 139, norm, [torch.randn(5), torch.rand(5), torch.ones(1)]))
    return [
        (name, kind, bottoms, tops, writers.text(field, param) if field else b"", tensors)
        for name, kind, bottoms, tops, field, param, tensors in layers
    ]


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("four", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_caffe_forms(v1, packed, four, dtype, tmp_path):
    layers = [(*rest, [tensor.to(dtype) for tensor in tensors]) for *rest, tensors in caffe_layers(v1)]
    content = writers.caffe(layers, v1=v1, packed=packed, four=four)
    stored = read_weights(written(tmp_path, "net.caffemodel", content))
    assert (stored.format, stored.metadata["name"]) == ("Caffe model", "a net")
    expected = {f"{name}.{k}": tensor for name, *_, tensors in layers for k, tensor in enumerate(tensors)}
    if four:
        expected = {name: t.view((1,) * (4 - t.ndim) + t.shape) for name, t in expected.items()}
    same(stored.tensors, expected)
    convolution, relu, dense = stored.metadata["layers"][:3]
    assert convolution == {
        "name": "conv1",
        "type": "Convolution",
        "bottoms": ["data"],
        "tops": ["conv1"],
        "params": {
            "convolution_param": {"num_output": 4, "bias_term": False, "pad": [1], "kernel_size": [3], "stride": [2]}
        },
        "blobs": ["conv1.0"],
    }
    assert (relu["type"], relu["blobs"]) == ("ReLU", [])
    assert (dense["type"], dense["blobs"]) == ("InnerProduct", ["fc/8.0", "fc/8.1"])
    if not v1:
        norm = stored.metadata["layers"][3]["params"]["batch_norm_param"]
        assert norm == {"use_global_stats": True, "eps": 0.5}
    json.dumps(stored.metadata)


def test_caffe_shape_given_twice(tmp_path):
    """The older form is the one that counts, as in Caffe's Blob::FromProto."""
    blob = writers.caffe_blob(torch.arange(4.0)) + b"".join(writers.number(k, n) for k, n in enumerate((1, 1, 2, 2), 1))
    layer = writers.text(1, "a") + writers.text(2, "Scale") + writers.text(7, blob)
    stored = read_weights(written(tmp_path, "a.caffemodel", writers.text(100, layer)))
    same(stored.tensors, {"a.0": torch.arange(4.0).view(1, 1, 2, 2)})


def test_caffe_contradictions(tmp_path):
    blob = writers.text(7, writers.text(1, b"\3")) + writers.text(5, FOUR)
    layer = writers.text(1, "a") + writers.text(2, "Scale") + writers.text(7, blob)
    refused(written(tmp_path, "a.caffemodel", writers.text(100, layer)), "'a.0' of shape .3,. takes 12 bytes")
    twice = [("a", "Scale", [], [], b"", [torch.ones(2)])] * 2
    refused(written(tmp_path, "b.caffemodel", writers.caffe(twice)), "'a.0' is there twice")
    both = writers.caffe_blob(torch.ones(2)) + writers.text(8, writers.raw(torch.ones(2).double()))
    layer = writers.text(1, "a") + writers.text(7, both)
    refused(written(tmp_path, "c.caffemodel", writers.text(100, layer)), "its numbers twice")
    layer = writers.text(4, "a") + writers.text(1, writers.text(1, "V0"))
    refused(written(tmp_path, "d.caffemodel", writers.text(2, layer)), "oldest format: run upgrade_net_proto_binary")


# --- PyTorch --------------------------------------------------------------------------------------------------------

both_forms = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "stream"])


def saved(folder, content, is_zip=True, name="net.pth"):
    torch.save(content, folder / name, _use_new_zipfile_serialization=is_zip)
    return folder / name


@both_forms
def test_pytorch_state_dict(is_zip, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    maps = torch.randn(2, 3, 4, 5)
    tensors = {
        **net.state_dict(),
        "parameter": torch.nn.Parameter(maps[0]),
        "channels_last": maps.contiguous(memory_format=torch.channels_last),
        "part": maps[1, 1],
        "transposed": maps[0, 0].T,
        "empty": torch.zeros(0, 3),
        "half": maps.bfloat16(),
    }
    stored = read_weights(saved(tmp_path, OrderedDict(tensors), is_zip))
    assert stored.format == ("PyTorch checkpoint" if is_zip else "PyTorch checkpoint (before 1.6)")
    assert not any(tensor.requires_grad for tensor in stored.tensors.values())
    same(stored.tensors, tensors)
    assert stored.metadata == {"part": "", "beside": []}
    assert stored.description() == stored.format


def test_pytorch_newer_types(tmp_path):
    tensors = {"w": torch.arange(3).to(torch.uint16), "v": torch.ones(2, dtype=torch.float8_e5m2)}
    read = read_weights(saved(tmp_path, tensors)).tensors
    assert {name: tensor.dtype for name, tensor in read.items()} == {n: t.dtype for n, t in tensors.items()}
    assert read["w"].tolist() == [0, 1, 2]


@both_forms
def test_pytorch_training_checkpoint(is_zip, tmp_path):
    """What timm, Cadene's and MMPretrain's scripts leave: wrapped weights, NumPy's numbers, the command line."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    raw = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    average = {name: tensor + 1 for name, tensor in raw.items()}
    content = {
        "epoch": 3,
        "arch": "seresnet50",
        "state_dict": raw,
        "optimizer": optimizer.state_dict(),
        "best": np.float64(77.5),
        "counts": np.int64(12),
        "args": argparse.Namespace(lr=0.1, output=Path("out")),
        "meta": {"classes": ("cat", "dog"), "history": np.arange(3)},
        "state_dict_ema": average,
        "loss": float("nan"),
    }
    path = saved(tmp_path, content, is_zip)
    stored = read_weights(path)
    same(stored.tensors, average)
    assert stored.metadata["part"] == "state_dict_ema"
    assert stored.metadata["beside"] == ["state_dict"]
    assert stored.description() == f"{stored.format} (its 'state_dict_ema', not 'state_dict')"
    assert set(stored.metadata["keys"]) == content.keys() - {"state_dict_ema"}
    values = stored.metadata["values"]
    assert values["epoch"] == 3
    assert values["arch"] == "seresnet50"
    assert (values["best"], values["counts"]) == (77.5, 12)
    assert values["meta"] == {"classes": ["cat", "dog"]}
    assert "loss" not in values
    json.dumps(stored.metadata, allow_nan=False)
    same(read_weights(path, part="state_dict").tensors, raw)
    refused(path, r"no weights under 'state_dic'; did you mean 'state_dict'\? \(only under", part="state_dic")


@both_forms
def test_pytorch_objects_of_others_stay_empty(is_zip, tmp_path, monkeypatch):
    """MMPretrain's histories and sets of names: nothing of the package that they come from is wanted, or imported."""
    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    history = module.HistoryBuffer()
    history.values = np.arange(3)
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        path = saved(tmp_path, {"state_dict": TENSORS, "hub": {"loss": history}, "seen": {"a"}}, is_zip)
    stored = read_weights(path)
    same(stored.tensors, TENSORS)
    assert stored.metadata["keys"] == ["hub", "seen"]
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize("key", ["model", "net", "model_state_dict", "something_else"])
def test_pytorch_wrapped(key, tmp_path):
    weights = {"w": torch.arange(3.0), "n": torch.tensor(4)}
    content = {"teacher": {"small": torch.zeros(1)}, key: weights}
    stored = read_weights(saved(tmp_path, content))
    assert stored.metadata["part"] == key
    same(stored.tensors, weights)
    nested = read_weights(saved(tmp_path, {"checkpoint": {key: weights}}))
    assert nested.metadata["part"] == f"checkpoint.{key}"


@both_forms
@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(3)], torch.ones(3), {}, {"a": torch.tensor(1)}])
def test_pytorch_without_weights(content, is_zip, tmp_path):
    refused(saved(tmp_path, content, is_zip), "holds no weights")


class Runs:
    """A pickle that makes a file when it is loaded the careless way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@both_forms
@pytest.mark.parametrize("where", ["alone", "beside", "inside"])
def test_pytorch_runs_nothing(where, is_zip, tmp_path):
    mark = tmp_path / "mark"
    weights = {"w": torch.ones(2)}
    content = {
        "alone": Runs(mark),
        "beside": {"state_dict": weights, "hook": Runs(mark)},
        "inside": {**weights, "v": Runs(mark)},
    }[where]
    path = saved(tmp_path, content, is_zip)
    refused(path, rf"was not loaded: its pickle asks for {os.name}.system, which could run code")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the test's own pickle does not do what it should"


@both_forms
def test_pytorch_whole_models(is_zip, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stream form warns that it keeps source code
        path = saved(tmp_path, torch.nn.Linear(2, 2), is_zip)
    refused(path, r"asks for torch.nn.modules.linear.Linear, .* save only model.state_dict\(\)")


@both_forms
@pytest.mark.parametrize("allowed", [bytearray(b"x"), torch.ones(2).to_sparse(), Counter("x")])
def test_pytorch_admits_less_than_torch(allowed, is_zip, tmp_path):
    refused(saved(tmp_path, {"w": torch.ones(2), "x": allowed}, is_zip), "was not loaded: its pickle asks for")


@both_forms
def test_stand_ins_are_gone_afterwards(is_zip, tmp_path):
    path = saved(tmp_path, {"w": torch.ones(2), "args": argparse.Namespace()}, is_zip)
    before = set(torch.serialization.get_safe_globals())
    read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before


class Declared:
    """A tensor as its pickle declares it, whatever there is behind it."""

    def __init__(self, key, stored, offset, size, stride):
        self.key, self.stored, self.arguments = key, stored, (offset, size, stride)

    def __reduce__(self):
        arguments = (Storage(self.key, self.stored), *self.arguments, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class Storage:
    def __init__(self, key, count):
        self.pid = ("storage", torch.FloatStorage, key, "cpu", count)


def pickled(value, *more):
    """``more``: what stands behind a storage's number of elements."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, each):
            return (*each.pid, *more) if isinstance(each, Storage) else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def declared_zip(folder, tensor, data=FOUR, **zip_options):
    path = folder / "net.pth"
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        archive.writestr("net/data.pkl", pickled({"w": tensor}))
        archive.writestr("net/data/0", data)
        archive.writestr("net/version", "3\n")
    return path


def declared_stream(folder, tensor, data=FOUR, count=4):
    head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    tail = pickled({"w": tensor}, None) + pickle.dumps(["0"], protocol=2) + struct.pack("<q", count) + data
    return written(folder, "net.pth", b"".join(head) + tail)


declared = pytest.mark.parametrize("write", [declared_zip, declared_stream])


@declared
def test_pytorch_declared_tensors(write, tmp_path):
    """The files that the next test spoils are good ones."""
    same(
        read_weights(write(tmp_path, Declared("0", 4, 0, (2, 2), (2, 1)))).tensors, {"w": torch.arange(4.0).view(2, 2)}
    )


@declared
@pytest.mark.parametrize(
    ("tensor", "pattern"),
    [
        (Declared("0", 4, 0, (5,), (1,)), "does not fit the 16 bytes"),
        (Declared("0", 4, 1, (4,), (1,)), "does not fit the 16 bytes"),
        (Declared("0", 4, 0, (2, 2), (4, 1)), "does not fit the 16 bytes"),
        (Declared("0", 4, 0, (1000, 4), (0, 1)), "does not fit the 16 bytes"),
        (Declared("0", 4, 0, (1 << 40, 1 << 40), (0, 0)), "impossible shape"),
        (Declared("0", 4, -1, (2,), (1,)), "a size is -1"),
        (Declared("0", 4, 0, (2,), (-1,)), "a size is -1"),
        (Declared("0", 4, 0, (2, 2), (1,)), "the strides"),
        (Declared("0", 4, 0, ("2",), (1,)), "a size is '2'"),
        (Declared("0", 1 << 40, 0, (1 << 40,), (1,)), "bytes, but .*data/|ends before its last tensor"),
        (Declared("0", 3, 0, (3,), (1,)), "bytes, but .*data/|storage has wrong byte size"),
        (Declared("1", 4, 0, (4,), (1,)), "bytes, but .*data/|storages in its list"),
    ],
)
def test_pytorch_sizes_are_not_believed(write, tensor, pattern, tmp_path):
    refused(write(tmp_path, tensor), pattern)


GOOD = Declared("0", 4, 0, (4,), (1,))


def test_pytorch_bombs(tmp_path):
    zeros = bytes(1 << 20)
    bomb = declared_zip(tmp_path, Declared("0", 1 << 18, 0, (1 << 18,), (1,)), zeros, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    refused(bomb, "is compressed, which torch.save never does")
    path = declared_zip(tmp_path, GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    refused(path, "something after the archive's end")
    path.write_bytes(b"PK\3\4more" + whole)
    refused(path, "do not begin at its start|cannot be read")
    path.write_bytes(whole.replace(FOUR, FOUR[:-1] + b"\x42"))
    refused(path, "'net/data/0' in it has a wrong checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("net/data/0", FOUR)
    refused(path, "two entries with the same name")


def test_pytorch_overlapping_entries(tmp_path):
    """Two entries of the directory that mean the same bytes, as in a bomb that needs no compression."""
    data = bytes(5000)
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickled({"w": Declared("0", 1250, 0, (1250,), (1,))}))
        for k in range(9):
            archive.writestr(f"net/data/{k}", data if k == 0 else b"")
        first = archive.getinfo("net/data/0")
        for k in range(1, 9):
            entry = archive.getinfo(f"net/data/{k}")
            entry.header_offset, entry.file_size = first.header_offset, first.file_size
            entry.compress_size, entry.CRC = first.compress_size, first.CRC
    refused(path, "entries of its archive overlap")


def test_pytorch_without_check_sums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, TENSORS)
    finally:
        torch.serialization.set_crc32_options(True)
    same(read_weights(path).tensors, TENSORS)


@both_forms
def test_pytorch_tangles(is_zip, tmp_path, monkeypatch):
    """Dictionaries in themselves, and shared a million times over: each is looked at once."""
    looked_at = []
    is_state_dict = pytorch._is_state_dict
    monkeypatch.setattr(pytorch, "_is_state_dict", lambda value: looked_at.append(id(value)) or is_state_dict(value))
    weights = {"w": torch.arange(3.0)}
    around = {"state_dict": weights}
    around["again"] = around
    same(read_weights(saved(tmp_path, around, is_zip)).tensors, weights)
    shared = {"x": 1}
    for _ in range(40):
        shared = {f"k{k}": shared for k in range(10)}
    stored = read_weights(saved(tmp_path, {"state_dict": weights, "values": shared}, is_zip))
    same(stored.tensors, weights)
    assert len(json.dumps(stored.metadata)) < 1_000_000
    assert len(looked_at) < 10


def test_pytorch_depth(tmp_path):
    """Each level is an instruction, so that a file of a hundred kilobytes can hold a hundred thousand."""
    deep = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("net/data.pkl", deep)
    refused(tmp_path / "net.pth", "nested more than")


@pytest.mark.parametrize(
    ("instructions", "pattern"),
    [
        (pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40), "the instruction 150"),  # takes memory on its word alone
        (pickle.SHORT_BINUNICODE + b"\2ab", "the instruction 140"),
        (pickle.STACK_GLOBAL, "the instruction 147"),
        (b"}(\x8a\xff", "its pickle cannot be read"),
        (b"K\x01K\x02R.", "its pickle cannot be read"),  # a call of a number
        (b"K\x01}b.", "a int is given a state"),
        (b"c__builtin__\nglobals\n.", "asks for builtins.globals, which could run code"),
    ],
)
def test_pytorch_foreign_instructions(instructions, pattern, tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + instructions)
    refused(tmp_path / "net.pth", pattern)


def test_torchscript_is_no_checkpoint(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "net.pt")
    refused(tmp_path / "net.pt", r"is a compiled program \(TorchScript")


# --- what is none of them -------------------------------------------------------------------------------------------

SAFETENSORS_HEADER = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML"),
        (b'{"model_type": "resnet"}', "JSON"),
        (b"just some words\nin two lines\n", "text file"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"\x93NUMPY\1\0" + bytes(20), "NumPy"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(20), "is a JPEG image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "is a PNG image"),
        (bytes(1000), "full of zeros"),
        (pickle.dumps({"w": [1.0]}), "bare pickle"),
        (b"x" * 257 + b"ustar\0" + b"\xff" * 300, "tar archive"),
        (bytes(range(128, 256)) * 3, "is in an unknown format.*known: MindSpore"),
        (b"\x00asm" * 100, "is in an unknown format"),
        (len(SAFETENSORS_HEADER).to_bytes(8, "little") + SAFETENSORS_HEADER, "is damaged"),
    ],
)
def test_other_files(content, pattern, tmp_path):
    refused(written(tmp_path, "net.ckpt", content), pattern)


def test_other_places(tmp_path):
    refused(tmp_path, "is a folder without a checkpoint")
    refused(tmp_path / "absent.pth", "there is no checkpoint")
    np.savez(tmp_path / "arrays.npz", w=np.ones(3))
    refused(tmp_path / "arrays.npz", r"a zip archive, but not a PyTorch checkpoint \(it holds w.npy\)")
    saved(tmp_path, TENSORS, name="pytorch_model.bin")
    same(read_weights(tmp_path).tensors, TENSORS)
    path = written(tmp_path, "net.ckpt", writers.mindspore(TENSORS))
    refused(path, "is not a PyTorch checkpoint, so it has no part 'model'", part="model")


def test_suffix_does_not_matter(tmp_path):
    path = written(tmp_path, "net.pth", writers.mindspore(TENSORS))
    assert read_weights(path).format == "MindSpore checkpoint"
    assert read_weights(saved(tmp_path, TENSORS, name="net.ckpt")).format == "PyTorch checkpoint"
