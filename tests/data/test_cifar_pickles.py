"""CIFAR's pickles from anywhere: every genuine form is read; nothing in a forged one is run, believed or copied."""

import io
import lzma
import pickle
import random
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from excite.data import cifar as cifar_module
from excite.data.cifar import load_pickle, read_cifar
from excite.errors import ExciteError
from tests.bounded import bounded
from tests.data.test_sources import CIFAR10, cifar_record, python2_pickle, write_cifar10


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def number(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def short(raw: bytes) -> bytes:
    return b"U" + bytes([len(raw)]) + raw


RECONSTRUCT = (
    name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + number(0) + b"\x85" + short(b"b")
)
DTYPE = name("numpy", "dtype")


def array(shape: bytes, dtype: bytes, raw: bytes) -> bytes:
    """An array as NumPy pickles it."""
    return RECONSTRUCT + b"\x87R(" + number(1) + shape + dtype + b"\x89" + raw + b"tb"


def kind(code: bytes, flags: int = 0) -> bytes:
    """A dtype with its state."""
    made = DTYPE + b"X" + struct.pack("<I", len(code)) + code + b"\x89\x88\x87R"
    return made + b"(" + number(3) + short(b"|") + b"NNN" + number(-1) * 2 + number(flags) + b"tb"


def record(data: bytes) -> bytes:
    return b"\x80\x02}" + short(b"data") + data + b"s."


def halves(levels: int) -> bytes:
    """A tuple of two of a tuple of two of ...: small in memory, without end when written out or hashed."""
    return b"))\x86" + b"q\x01h\x01\x86" * levels


#: What it is: the bytes, and what the sentence says.
FORGED = {
    # The case of the issue: an object's type whose flags say that there are no objects in it.
    "forged dtype": (
        b"\x80\x02" + name("numpy", "ndarray") + array(number(1) + b"\x85", kind(b"O8"), short(b"A" * 8)) + b"\x85R.",
        "was not loaded: its pickle asks for an array of type 'O8'",
    ),
    "forged dtype in a record": (
        record(array(number(1) + b"\x85", kind(b"O8"), short(b"A" * 8))),
        "an array of type 'O8', which is not a number",
    ),
    "an array of its own making": (
        record(name("numpy", "ndarray") + number(1 << 20) + b"\x85R"),
        "asks for numpy.ndarray, other than as NumPy pickles it",
    ),
    "type of records": (
        record(array(number(1) + b"\x85", kind(b"V8"), short(b"A" * 8))),
        "'V8', which is not a number",
    ),
    "type as code": (record(array(number(1) + b"\x85", kind(b"u1,O"), short(b"A"))), "'u1,O', which is not a number"),
    "uninitialised array": (record(RECONSTRUCT + b"\x87R"), "should be uint8 of shape .* found NoneType"),
    "array without bytes": (record(array(number(1 << 30) + b"\x85", kind(b"u1"), short(b"A"))), "takes .* bytes"),
    "negative shape": (record(array(number(-1) + b"\x85", kind(b"u1"), short(b"A"))), "impossible shape"),
    "array of nothing": (record(array(b"(" + number(0) * 40 + b"t", kind(b"u1"), short(b""))), "40 dimensions"),
    "memo of four billions": (b"\x80\x02}r\xfe\xff\xff\xff.", "should be uint8"),
    "text of four gigabytes": (b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"x", "damaged or truncated"),
    "bytearray of a petabyte": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b"x", "damaged or truncated"),
    "frame of a petabyte": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"x", "damaged or truncated"),
    "a hundred thousand tuples": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "nested more than"),
    "tuples without end as a key": (b"\x80\x02}" + halves(60) + b"Ns.", "a key is a tuple"),
    "tuples without end as a codec": (name("_codecs", "encode") + b"Vx\n" + halves(60) + b"\x86R.", "in the codec"),
    "tuples without end as a shape": (record(array(halves(60), kind(b"u1"), short(b"A"))), "without a shape"),
    "tuples without end as a label": (
        record(array(number(1) + number(3072) + b"\x86", kind(b"u1"), b"B" + struct.pack("<I", 3072) + bytes(3072)))[
            :-1
        ]
        + short(b"labels") + b"](" + halves(60) + b"es.",
        "label .* is outside",
    ),
    "one text a hundred thousand times": (
        b"\x80\x02" + name("_codecs", "encode") + b"q\x01X" + struct.pack("<I", 100_000) + b"A" * 100_000
        + b"V" + b"latin1\n\x86q\x020](" + b"h\x01h\x02R" * 100_000 + b"e.",
        "damaged",
    ),
    "an integer of a million digits": (b"L" + b"9" * 1_000_000 + b"L\n.", "damaged or truncated"),
    "a name of a million letters": (b"c" + b"o" * 1_000_000 + b"\nsystem\n.", "not a CIFAR file and was not loaded"),
    "an address of an object": (b"\x80\x02P1\n.", "the instruction 80"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_pickle_is_refused_in_one_short_sentence(what, tmp_path):
    content, message = FORGED[what]
    folder = write_cifar10(tmp_path)
    for file in folder.glob("*_batch*"):
        file.write_bytes(content)
    with bounded(128, 20), pytest.raises(ExciteError, match=message) as caught:
        read_cifar("cifar10", tmp_path)
    assert len(str(caught.value)) < len(str(tmp_path)) + 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_and_both_pythons_are_read_alike(protocol, tmp_path):
    expected = read_cifar("cifar10", write_cifar10(tmp_path / "a"))
    text = {key.decode(): value for key, value in cifar_record(8, 1).items()}
    assert load_pickle(pickle.dumps(text, protocol), "x")["labels"] == text["labels"]
    names, train, test = read_cifar("cifar10", write_cifar10(tmp_path / "b", lambda r: pickle.dumps(r, protocol)))
    assert names == expected[0] == CIFAR10
    for found, one in zip((train, test), expected[1:], strict=True):
        assert found.images.equal(one.images)
        assert found.labels.equal(one.labels)


def test_other_arrays_are_what_numpy_reads():
    for values in (
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array(7.5),
        np.zeros((0, 3), np.uint8),
    ):
        for protocol in (0, 2, 4, 5):
            found = load_pickle(pickle.dumps({"x": values}, protocol), "x")["x"]
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", ""])
def test_archives_of_every_kind_and_their_damage(form, tmp_path):
    folder = write_cifar10(tmp_path)
    path = tmp_path / f"cifar.tar.{form}"
    with tarfile.open(path, f"w:{form}") as archive:
        archive.add(folder, folder.name)
    whole = path.read_bytes()
    expected = read_cifar("cifar10", folder)
    assert read_cifar("cifar10", path)[1].images.equal(expected[1].images)
    rng = random.Random(form)
    refused, said = 0, []
    with bounded(128, 60):
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 5, 50))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged if rng.random() < 0.7 else damaged[: rng.randrange(len(damaged))])
            try:
                read_cifar("cifar10", path)
            except ExciteError as error:
                refused += 1
                said.append(str(error))
    assert refused > 20
    assert not any("\n" in text for text in said)


def test_links_in_an_archive_are_no_files(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(python2_pickle(cifar_record(8, 1)))
    path = tmp_path / "cifar.tar"
    for fields in ({"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}):
        with tarfile.open(path, "w") as archive:
            for i in range(1, 6):
                add(archive, f"cifar-10-batches-py/data_batch_{i}", linkname=str(secret), **fields)
        with pytest.raises(ExciteError, match="lacks data_batch_1, data_batch_2"):
            read_cifar("cifar10", path)
    assert [p.name for p in tmp_path.iterdir() if p != path] == ["secret"]


def test_members_that_point_out_of_the_folder_write_nothing(tmp_path):
    folder = write_cifar10(tmp_path / "inner")
    path = tmp_path / "cifar.tar"
    with tarfile.open(path, "w") as archive:
        for file in folder.iterdir():
            add(archive, f"../../{file.name}", file.read_bytes())
    read_cifar("cifar10", path)  # by their names, from memory
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar.tar", "inner"]


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    """A header that is all text; and the same as a file that nobody asked for."""
    monkeypatch.setattr(cifar_module, "MAX_BYTES", 32 << 20)
    path = tmp_path / "cifar.tar.xz"
    for kind_of_member in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE):
        head = tarfile.TarInfo("other")
        head.type, head.size = kind_of_member, 128 << 20
        packer = lzma.LZMACompressor(preset=0)
        with path.open("wb") as file:
            file.write(packer.compress(head.tobuf(tarfile.GNU_FORMAT)))
            file.write(packer.compress(b"\0" * (40 << 20)))
            file.write(packer.flush())
        assert path.stat().st_size < 1 << 20
        with bounded(128), pytest.raises(ExciteError, match="unpacks to more than 32 MB"):
            read_cifar("cifar10", path)


def test_a_file_larger_than_any_genuine_one_is_not_read(tmp_path):
    folder = write_cifar10(tmp_path)
    with (folder / "data_batch_2").open("r+b") as file:
        file.truncate(1 << 40)
    with bounded(), pytest.raises(ExciteError, match="data_batch_2 is not a cifar10 file: it has more than 512 MB"):
        read_cifar("cifar10", tmp_path)


def mutated(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out))
        choice = rng.randrange(4)
        if choice == 0:
            out[at] = rng.randrange(256)
        elif choice == 1:
            out[at : at + rng.randrange(9)] = rng.choice((b"\xff" * 8, b"R", b"b", b"t", b"\x86", b"q\x01h\x01"))
        elif choice == 2:
            del out[at : at + rng.randrange(1, 20)]
        else:
            out[at:at] = out[rng.randrange(len(out)) :][:30]
    return bytes(out)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_mutated_pickles_are_read_or_refused(seed, tmp_path):
    """Small ones, so that a change meets the instructions and not the pixels."""
    rng = random.Random(seed)
    whole = [pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [0, 1]}, p) for p in (0, 2, 4, 5)]
    whole += [python2_pickle({b"labels": [1], b"data": np.zeros((1, 4), np.float32), b"n": [b"x"]})]
    refused, said = 0, []
    with bounded(128, 110):
        for _ in range(3000 if seed == 0 else 100_000):
            try:
                load_pickle(mutated(rng, rng.choice(whole)), "x")
            except ExciteError as error:
                refused += 1
                said.append(str(error))
    assert refused > 1000
    assert not any("\n" in text for text in said)


def test_the_archive_as_the_world_has_it(cifar, tmp_path):
    """Python 2's own instructions, in an archive packed by gzip, equal to the files in the folder."""
    folder = next(Path(cifar["batches"]).rglob("data_batch_1")).parent
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    expected, found = read_cifar("cifar10", folder), read_cifar("cifar10", tmp_path)
    assert found[0] == expected[0]
    assert found[1].images.equal(expected[1].images)
    assert found[2].labels.equal(expected[2].labels)
