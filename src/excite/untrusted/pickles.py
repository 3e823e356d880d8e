"""Reads pickles with stand-ins for everything they name: nothing in a file is imported, run or trusted.

:class:`StandInUnpickler` is the common base, also for CIFAR's files (:mod:`excite.data.cifar`).

:func:`inspect` checks the pickle of a PyTorch checkpoint before ``torch.load`` gets it. With ``weights_only=True``,
``torch.load`` runs nothing unknown, but it trusts sizes: a pickle of a hundred bytes may ask for a tensor of a
terabyte, or for one that extends beyond its storage and so exposes memory. The stand-ins here only record sizes, and
allow fewer names than PyTorch does.
"""

import _compat_pickle
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from excite.errors import ExciteError, shown, shown_text
from excite.untrusted.raw import Damaged, count_elements


class Readable(Protocol):
    """A file that an unpickler can read from."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


#: Deeper than any checkpoint. Deeper nesting can crash the interpreter when it is deleted or printed.
_DEEPEST = 200


class Inert:
    """Stands for an object whose contents are not needed; it accepts anything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Namespace(Inert):
    """Stands for ``argparse.Namespace``: the command line of a training script, which describes what it trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


class Dtype(Inert):
    """Stands for ``numpy.dtype``; keeps numbers of up to 16 bytes and ignores the rest."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code if isinstance(code, str) and code[:1] in tuple("biufc") and len(code) <= 3 else None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and ">" in state[:2]:
            self.code = None  # numbers from big-endian machines are ignored


def scalar(dtype: Any, raw: Any = None, *_: Any) -> Any:
    """Stands for NumPy's scalars: a Python number, or an inert object if it is not a number."""
    if isinstance(raw, str):
        raw = raw.encode("latin-1", "replace")
    if not isinstance(dtype, Dtype) or dtype.code is None or not isinstance(raw, bytes):
        return Inert()
    kind = np.dtype(f"<{dtype.code}")
    return np.frombuffer(raw, kind)[0].item() if len(raw) == kind.itemsize else Inert()


def latin1(text: Any, codec: Any = None) -> bytes:
    """Stands for ``_codecs.encode``, which Python 2's pickles use for bytes."""
    if not isinstance(text, str) or codec != "latin1":
        raise Damaged(f"bytes are written in the codec {shown(codec)}")
    return text.encode("latin-1")


#: What checkpoints hold besides tensors -> its stand-in. None of the named code is imported or run, neither here nor by
#: torch.load: NumPy's numbers become numbers, everything else an empty object.
STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray.scalar": scalar,  # accuracies and losses
    "numpy._core.multiarray.scalar": scalar,
    "numpy.dtype": Dtype,
    "numpy.core.multiarray._reconstruct": Inert,  # arrays: histories, class weights
    "numpy._core.multiarray._reconstruct": Inert,
    "numpy.ndarray": Inert,
    "argparse.Namespace": Namespace,  # the command line, as timm, Cadene and others keep it
    "pathlib.PosixPath": Inert,
    "pathlib.WindowsPath": Inert,
    "mmengine.logging.history_buffer.HistoryBuffer": Inert,  # MMPretrain's training checkpoints
}


class _Storage:
    """A declared storage: its key, the size of its elements and its number of bytes."""

    def __init__(self, key: str, itemsize: int, count: int) -> None:
        self.key, self.itemsize, self.nbytes = key, itemsize, itemsize * count


class _StorageType:
    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


class _Tensor:
    """A declared tensor."""


#: A stand-in for a name in PyTorch's pickles.
_Known = Callable[..., Any] | _StorageType | torch.dtype


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Damaged(f"a size is {shown(value)}")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    """Stands for ``torch._utils._rebuild_tensor*``; checks that the tensor is within its storage."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), None)
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Damaged("a tensor has no storage or no shape")
    itemsize = storage.itemsize if dtype is None else dtype.itemsize
    size, stride = [_number(n) for n in size], [_number(n) for n in stride]
    if len(size) != len(stride):
        raise Damaged(f"a tensor has the shape {shown(tuple(size))} and the strides {shown(tuple(stride))}")
    count = count_elements("a tensor", size)
    span = _number(offset) + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0)
    if max(span, count) * itemsize > storage.nbytes:
        raise Damaged(f"a tensor of shape {tuple(size)} does not fit the {storage.nbytes} bytes stored for it")
    return _Tensor()


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _key(key: Any) -> Any:
    """A key of a dictionary. (Hashing a tuple with parts shared many times over might never end, or crash.)"""
    plain = (str, bytes, int, float, type(None))
    if isinstance(key, plain) or (isinstance(key, tuple) and len(key) < 9 and all(isinstance(k, plain) for k in key)):
        return key
    raise Damaged(f"a key is a {type(key).__name__}")


def _ordered(items: Iterable[Any] = ()) -> "OrderedDict[Any, Any]":
    return OrderedDict((_key(key), value) for key, value in items)


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {_key(item) for item in items}


def _torch_names() -> dict[str, _Known]:
    names: dict[str, _Known] = {
        "collections.OrderedDict": _ordered,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.Size": tuple,
        "builtins.set": _set,
        "torch.device": Inert,
        "torch.storage.UntypedStorage": _StorageType(1),
        "_codecs.encode": latin1,
    }
    for dtype, storage in torch.storage._dtype_to_storage_type_map().items():
        names[f"torch.{storage}"] = _StorageType(dtype.itemsize)
    for value in vars(torch).values():
        if isinstance(value, torch.dtype):
            names[str(value)] = value
    return names


_NAMES: dict[str, _Known] = {**_torch_names(), **STAND_INS}

#: The opcodes that torch.save writes and torch.load(weights_only=True) knows. None allocates more than the pickle can
#: back, as BYTEARRAY8 would.
_OF_TORCH = """
    APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST
    EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS
    SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""


class StandInUnpickler(pickle._Unpickler):
    """An unpickler that only knows some names, for which it has stand-ins, and some opcodes.

    It is based on the Python unpickler rather than the C one, which allocates as many memo entries as the pickle
    claims. What the stand-ins make of the pickle's texts and lists takes no more memory than the pickle itself;
    otherwise, a text could be copied a million times.
    """

    #: "module.name" (as in Python 3) -> what stands for it.
    names: ClassVar[Mapping[str, Any]] = {}
    stack: list[Any]

    def __init__(self, file: Readable, size: int, where: str, encoding: str) -> None:
        """``size``: length of the pickle in bytes, or more. ``where``: the file's name, for messages."""
        super().__init__(file, encoding=encoding)
        self.where, self.left = where, size

    def refused(self, full: str) -> ExciteError:
        """The error for a pickle that names something else."""
        return ExciteError(
            f"{self.where} was not loaded: its pickle asks for {full}, which could run code; only tensors, numbers "
            "and texts are read (where it was made, save only model.state_dict())"
        )

    def find_class(self, module: str, name: str) -> Any:
        full = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
        if full not in self.names:
            raise self.refused(shown_text(full))
        return self.names[full]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        made = self.stack[-1] = self.stack[-1](*arguments)
        if isinstance(made, str | bytes | list | tuple | dict | set):
            self.left -= len(made)
            if self.left < 0:
                raise Damaged("its pickle makes more of its content than there is")

    def load_build(self) -> None:
        """The state of an object, which its stand-in may use."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].__setstate__(state)
        elif not isinstance(self.stack[-1], OrderedDict):
            raise Damaged(f"a {type(self.stack[-1]).__name__} is given a state")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})  # type: ignore[attr-defined]
        self._set_items(items)

    def load_bytearray8(self) -> None:
        """Read as bytes: Python's own version allocates the claimed size before reading anything."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # type: ignore[attr-defined]

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise Damaged(f"a {type(self.stack[-1]).__name__} is given entries")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value


class _Instructions(dict[int, Any]):
    def __init__(self, known: Mapping[int, Any], writer: str) -> None:
        super().__init__(known)
        self.writer = writer

    def __missing__(self, code: int) -> Any:
        raise Damaged(f"its pickle has the instruction {code}, which {self.writer} does not write")


def instructions(names: str, writer: str) -> dict[int, Any]:
    """``dispatch`` of a :class:`StandInUnpickler` that knows these opcodes, by their names in ``pickle``."""
    own = {
        "REDUCE": StandInUnpickler.load_reduce,
        "BUILD": StandInUnpickler.load_build,
        "SETITEM": StandInUnpickler.load_setitem,
        "SETITEMS": StandInUnpickler.load_setitems,
        "DICT": StandInUnpickler.load_dict,
        "BYTEARRAY8": StandInUnpickler.load_bytearray8,
    }
    codes = {name: getattr(pickle, name)[0] for name in names.split()}
    return _Instructions({c: own.get(n, pickle._Unpickler.dispatch[c]) for n, c in codes.items()}, writer)


class _Inspector(StandInUnpickler):
    """Goes through one of PyTorch's pickles."""

    dispatch: ClassVar[dict[int, Any]] = instructions(_OF_TORCH, "torch.save")
    names: ClassVar[Mapping[str, Any]] = _NAMES

    def __init__(self, file: Readable, size: int, where: str, storages: dict[str, int]) -> None:
        super().__init__(file, size, where, encoding="latin-1")
        self.storages = storages

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", type, key, location, number of elements), in older files with the place of a view."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Damaged("a storage is not described as in PyTorch")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise Damaged("a storage has no type or no key")
        storage = _Storage(key, kind.itemsize, _number(count))
        self.storages[key] = max(storage.nbytes, self.storages.get(key, 0))
        if view and view[0] is not None:
            _, offset, size = view[0]
            if _number(offset) + _number(size) > count:
                raise Damaged("a part of a storage reaches past its end")
            return _Storage(key, kind.itemsize, size)
        return storage


def inspect(file: Readable, size: int, where: str, storages: dict[str, int]) -> Any:
    """Go through the pickle at the file's current position, up to its end.

    Args:
        file: the pickle of a PyTorch checkpoint.
        size: its length in bytes, or that of the file that contains it.
        where: the file's name, for messages.
        storages: filled with the number of bytes of every declared storage, by key.

    Returns:
        Its contents, with stand-ins for tensors and objects.

    Raises:
        ExciteError: it asks for something that could run code.
        Damaged: it is not the pickle of a checkpoint, or a tensor does not fit its storage.
    """
    try:
        value = _Inspector(file, size, where, storages).load()
    except (ExciteError, Damaged):
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise Damaged(f"its pickle cannot be read: {shown_text(str(error) or type(error).__name__)}") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise Damaged if lists, tuples and dictionaries are nested deeper than in any valid file."""
    seen, level = {id(value)}, [value]
    for _ in range(_DEEPEST):
        inner = [
            each
            for one in level
            for each in (one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ())
        ]
        level = []
        for each in inner:
            if isinstance(each, dict | list | tuple) and id(each) not in seen:
                seen.add(id(each))
                level.append(each)
        if not level:
            return
    raise Damaged(f"its content is nested more than {_DEEPEST} deep")
