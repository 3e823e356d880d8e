"""A look through the pickle of a PyTorch checkpoint before ``torch.load`` may see it.

``torch.load(weights_only=True)`` runs nothing that it does not know, but it believes the sizes: a pickle of a hundred
bytes may ask it for a tensor of a terabyte, or for one that reaches past its storage and so holds whatever was in
memory. Here the pickle is gone through with stand-ins for everything it names, which only write sizes down; what it may
name is less than what PyTorch admits.
"""

import _compat_pickle
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from excite.errors import ExciteError
from excite.weights.raw import Damaged, count_elements


class Readable(Protocol):
    """What an unpickler reads from."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


#: Deeper than any checkpoint; what is deeper can end the interpreter when it is deleted or printed.
_DEEPEST = 200


class Inert:
    """Stands for an object whose content is of no use here; it takes whatever it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Namespace(Inert):
    """Stands for ``argparse.Namespace``: the command line of a training script, by which it says what it trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


class Dtype(Inert):
    """Stands for ``numpy.dtype``; knows numbers of up to 16 bytes and forgets the rest."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code if isinstance(code, str) and code[:1] in tuple("biufc") and len(code) <= 3 else None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and ">" in state[:2]:
            self.code = None  # numbers of a big-endian machine are not worth the trouble


def scalar(dtype: Any, raw: Any = None, *_: Any) -> Any:
    """Stands for NumPy's scalars: a Python number, or an inert object where it is none."""
    if isinstance(raw, str):
        raw = raw.encode("latin-1", "replace")
    if not isinstance(dtype, Dtype) or dtype.code is None or not isinstance(raw, bytes):
        return Inert()
    kind = np.dtype(f"<{dtype.code}")
    return np.frombuffer(raw, kind)[0].item() if len(raw) == kind.itemsize else Inert()


def latin1(text: Any, codec: Any = None) -> bytes:
    """Stands for ``_codecs.encode``, by which Python 2's pickles hold bytes."""
    if not isinstance(text, str) or codec != "latin1":
        raise Damaged(f"bytes are written in the codec {codec!r}")
    return text.encode("latin-1")


#: What checkpoints hold beside tensors, and what stands for it. None of the named code is imported or run, neither
#: here nor by torch.load: numbers of NumPy become numbers, everything else an empty object.
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
    """A declared storage: its key, and how many bytes of what type."""

    def __init__(self, key: str, itemsize: int, count: int) -> None:
        self.key, self.itemsize, self.nbytes = key, itemsize, itemsize * count


class _StorageType:
    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


class _Tensor:
    """A declared tensor."""


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Damaged(f"a size is {value!r}")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    """Stands for ``torch._utils._rebuild_tensor*``: within its storage, with no more elements than that has."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), None)
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Damaged("a tensor has no storage or no shape")
    itemsize = storage.itemsize if dtype is None else dtype.itemsize
    size, stride = [_number(n) for n in size], [_number(n) for n in stride]
    if len(size) != len(stride):
        raise Damaged(f"a tensor has the shape {tuple(size)} and the strides {tuple(stride)}")
    count = count_elements("a tensor", size)
    span = _number(offset) + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0)
    if max(span, count) * itemsize > storage.nbytes:
        raise Damaged(f"a tensor of shape {tuple(size)} does not fit the {storage.nbytes} bytes stored for it")
    return _Tensor()


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _torch_names() -> dict[str, Any]:
    names: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.Size": tuple,
        "builtins.set": set,
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


_NAMES: dict[str, Any] = {**_torch_names(), **STAND_INS}

#: The instructions that torch.save writes and torch.load(weights_only=True) knows. None takes memory on the pickle's
#: word alone, as BYTEARRAY8 would.
_INSTRUCTIONS = [
    "APPEND",
    "APPENDS",
    "BINFLOAT",
    "BINGET",
    "BININT",
    "BININT1",
    "BININT2",
    "BINPERSID",
    "BINPUT",
    "BINUNICODE",
    "BUILD",
    "EMPTY_DICT",
    "EMPTY_LIST",
    "EMPTY_TUPLE",
    "GLOBAL",
    "LONG1",
    "LONG_BINGET",
    "LONG_BINPUT",
    "MARK",
    "NEWFALSE",
    "NEWOBJ",
    "NEWTRUE",
    "NONE",
    "PROTO",
    "REDUCE",
    "SETITEM",
    "SETITEMS",
    "SHORT_BINSTRING",
    "STOP",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
]


class _Instructions(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise Damaged(f"its pickle has the instruction {code}, which torch.save does not write")


class _Inspector(pickle._Unpickler):
    """Goes through one pickle.

    The Python form of the unpickler and not the C one, which sets aside memory for as many entries as the pickle says
    that its memo has.
    """

    dispatch: ClassVar[dict[int, Any]] = _Instructions(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _INSTRUCTIONS}
    )

    stack: list[Any]

    def __init__(self, file: Readable, where: str, storages: dict[str, int]) -> None:
        super().__init__(file, encoding="latin-1")
        self.where, self.storages = where, storages

    def find_class(self, module: str, name: str) -> Any:
        full = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
        if full not in _NAMES:
            raise ExciteError(
                f"{self.where} was not loaded: its pickle asks for {full}, which could run code; only tensors, numbers "
                "and texts are read (where it was made, save model.state_dict() alone)"
            )
        return _NAMES[full]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", type, key, location, number of elements), with a view's place in older files."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Damaged("a storage is not described as PyTorch does it")
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

    def load_build(self) -> None:
        """The state of an object: nothing here has any."""
        self.stack.pop()
        if not isinstance(self.stack[-1], Inert | OrderedDict):
            raise Damaged(f"a {type(self.stack[-1]).__name__} is given a state")

    dispatch[pickle.BUILD[0]] = load_build


def inspect(file: Readable, where: str, storages: dict[str, int]) -> Any:
    """Go through the pickle at the file's place, up to its end.

    Args:
        file: a PyTorch checkpoint's pickle.
        where: the file's name, for messages.
        storages: gets the bytes of every storage that is declared, by key.

    Returns:
        What it holds, with stand-ins for tensors and objects.

    Raises:
        ExciteError: it asks for something that could run code.
        Damaged: it is no pickle of a checkpoint, or a tensor does not fit its storage.
    """
    try:
        value = _Inspector(file, where, storages).load()
    except (ExciteError, Damaged):
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise Damaged(f"its pickle cannot be read: {str(error) or type(error).__name__}") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
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
