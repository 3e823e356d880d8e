"""Our own weights files: self-contained safetensors with the model's name and arguments, class names, preprocessing,
recipe, metrics and versions in the header. No pickled code.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from excite.errors import ExciteError, first_line, shown_text
from excite.files import to_json
from excite.gates import Gate
from excite.models import create_model
from excite.models.timm_models import PREFIX
from excite.weights.digest import DIGEST, read_safetensors, write_safetensors
from excite.weights.header import Meta, ModelMeta, check_arguments, read_header
from excite.weights.locate import find_weights

FORMAT_VERSION = 1


@dataclass
class Checkpoint:
    """A loaded weights file.

    Attributes:
        path: the file the tensors came from.
        tensors: name -> tensor, on the CPU.
        meta: its header.
        digest: the digest of its content, which was checked; None for files of versions that wrote none.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: Meta
    digest: str | None = None


def save_weights(path: Path, model: nn.Module | Mapping[str, Tensor], meta: Meta) -> None:
    """Write a self-contained safetensors file, in place (see ``written_aside`` for safe replacement).

    Args:
        path: the file.
        model: the network, or its state_dict.
        meta: the header.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_safetensors(path, tensors, {"excite": to_json({"format_version": FORMAT_VERSION, **meta})})


def read_own(source: str | Path) -> Checkpoint:
    """Load a weights file written by this package.

    Args:
        source: a run folder, a checkpoint folder or a ``.safetensors`` file, also at an address such as ``s3://...``.

    Raises:
        ExciteError: there is no file, it is damaged, or it was not written by this package.
    """
    path = find_weights(source)
    tensors, texts = read_safetensors(path)
    header = texts.get("excite")
    if header is None:
        raise ExciteError(f"{path} was not written by excite: its header does not name a model")
    meta = read_header(header, path)
    check_arguments(path, meta["model"]["args"], tensors)
    return Checkpoint(path, tensors, meta, texts.get(DIGEST))


def build_network(path: str | Path, model: ModelMeta, tensors: dict[str, Tensor]) -> nn.Module:
    """The network that a header names, with fresh weights, after checking that it has the file's tensors.

    It is first built on the meta device, without memory for its weights, so that a header with a billion classes costs
    nothing.

    Args:
        path: the file, for messages.
        model: ``model`` of a header checked by ``read_header``.
        tensors: the tensors of the file.

    Raises:
        ExciteError: there is no such network, its arguments are wrong, or it has other tensors.
    """
    name, args = model["name"], dict(model["args"])
    check_arguments(path, args, tensors)
    try:
        with torch.device("meta"):
            misfits = mismatches(create_model(name, **args), tensors)
    except Exception as error:
        # Some of timm's code computes with real numbers while it builds, which the meta device does not have.
        if isinstance(error, ExciteError) or not name.startswith(PREFIX):
            raise _not_made(path, error) from None
        misfits = []
    if misfits:
        raise ExciteError(f"{path} does not fit this model: {listed(misfits)}")
    try:
        return create_model(name, **args)
    except Exception as error:
        raise _not_made(path, error) from None


def _not_made(path: str | Path, error: Exception) -> ExciteError:
    if isinstance(error, ExciteError):
        return ExciteError(f"{path}: the network in its header cannot be created: {error}")
    reason = shown_text(first_line(error))
    return ExciteError(f"{path}: the network in its header cannot be created: model.args are wrong ({reason})")


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a model of the same shape. Raises ExciteError that lists what does not fit."""
    misfits = mismatches(model, checkpoint.tensors)
    if misfits:
        raise ExciteError(f"{checkpoint.path} does not fit this model: {listed(misfits)}")
    model.load_state_dict(checkpoint.tensors)


def fresh_gates(model: nn.Module, lacking: Collection[str]) -> list[str]:
    """Names of the gates that start as the identity and whose tensors are all among ``lacking``."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Gate) and module.identity and all(f"{name}.{k}" in lacking for k in module.state_dict())
    ]


def mismatches(model: nn.Module, tensors: dict[str, Tensor], may_lack: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """What is missing, unexpected or of the wrong shape, one clause each."""
    own = model.state_dict()
    missing = [f"{k} is missing" for k in own if k not in tensors and k not in may_lack]
    extra = [f"{shown_text(k)} is left over" for k in tensors if k not in own]
    shapes = [
        f"{k} has shape {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and v.shape != own[k].shape
    ]
    return missing + extra + shapes


def listed(clauses: list[str], most: int = 8) -> str:
    more = f"; and {len(clauses) - most} more" if len(clauses) > most else ""
    return "; ".join(clauses[:most]) + more
