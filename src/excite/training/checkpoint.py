"""Checkpoints: weights as safetensors, the rest loadable with ``weights_only=True``; no pickled code, ever.

A run folder holds ``checkpoints/step-00001234/`` with ``model.safetensors``, ``ema.safetensors`` (with EMA) and
``state.pt`` (optimiser, loss scale, counters), and at its root ``model.safetensors``: the best weights to evaluate,
predict with and ship. Every safetensors file is self-contained: its header holds the model's name and arguments, class
names, preprocessing, recipe, metrics and versions.
"""

import math
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from excite.errors import ExciteError, first_line, shown, shown_text
from excite.files import to_json, written_aside
from excite.gates import Gate
from excite.header import check_arguments, explain, read_header
from excite.storage import is_remote, weights_at

FORMAT_VERSION = 1
WEIGHTS, EMA, STATE = "model.safetensors", "ema.safetensors", "state.pt"


@dataclass
class Checkpoint:
    """A loaded weights file.

    Attributes:
        path: the file the tensors came from.
        tensors: name -> tensor, on the CPU.
        meta: ``model`` {name, args}, ``classes``, ``preprocessing``, ``recipe``, ``metrics``, ``versions``, ``step``,
            ``epoch``, ``precision``.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


def save_weights(path: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    """Write one self-contained safetensors file, in place (see ``written_aside`` for safe replacement)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt", "excite": to_json({"format_version": FORMAT_VERSION, **meta})})


def save_step(
    run: Path, step: int, model: nn.Module, ema: nn.Module | None, state: dict[str, Any], meta: dict[str, Any]
) -> Path:
    """Write ``checkpoints/step-N`` whole or not at all, and return it. Raises ExciteError when the disk is full."""
    folder = step_folder(run, step)
    if (folder / STATE).is_file():  # a run is a function of its step: this is the same checkpoint
        return folder
    with written_aside(folder) as aside:
        aside.mkdir()
        try:
            save_weights(aside / WEIGHTS, model, meta)
            if ema is not None:
                save_weights(aside / EMA, ema, meta)
            torch.save(state, aside / STATE)
        except (SafetensorError, RuntimeError) as error:  # both wrap the system's error when the disk is full
            raise _as_os_error(error, aside) from error
    return folder


def _as_os_error(error: Exception, folder: Path) -> OSError:
    code = re.search(r"os error (\d+)", str(error))
    if code:
        return OSError(int(code.group(1)), str(error))
    free = shutil.disk_usage(folder).free
    return OSError(28, str(error)) if free < 1 << 20 else OSError(5, str(error))


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept."""
    return run / "checkpoints" / f"step-{step:08d}"


def saved_steps(run: Path) -> list[int]:
    """The steps with a whole checkpoint, ascending."""
    found = (
        re.fullmatch(r"step-(\d{8,})", p.name) for p in (run / "checkpoints").glob("step-*") if (p / STATE).is_file()
    )
    return sorted(int(match.group(1)) for match in found if match)


def prune(run: Path, keep_last: int, best: int | None) -> None:
    """Delete all but the last ``keep_last`` checkpoints and the best one, and what a kill left half-written."""
    steps = saved_steps(run)
    for step in set(steps[:-keep_last]) - {best}:
        shutil.rmtree(step_folder(run, step), ignore_errors=True)
    for leftover in [*run.glob("checkpoints/.*.tmp-*"), *run.glob(".*.tmp-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def load_state(folder: Path) -> dict[str, Any]:
    """Read ``state.pt`` of a checkpoint folder; executes nothing, and takes no memory on the file's word alone.

    Raises:
        ExciteError: it is damaged.
    """
    from excite.weights.pytorch import check_zip

    path = folder / STATE
    remedy = f"delete {folder} to resume from the checkpoint before it"
    try:
        check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _State.model_validate(state)
    except ValidationError as error:
        why = "; ".join(explain(e) for e in error.errors()[:3])
        raise ExciteError(f"{path} is damaged ({why}); {remedy}") from None
    except Exception as error:  # what a damaged file makes of it is nearly anything
        raise ExciteError(f"{path} is damaged ({shown_text(first_line(error))}); {remedy}") from None
    return state


class _Best(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    top1: float | None
    loss: float | None


class _State(BaseModel):
    """What ``Run.state`` gives: counters, and the optimiser's, which is compared with the run's own in ``restore``."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)

    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    steps_per_epoch: Annotated[int, Field(ge=1, lt=1 << 53)]
    optimizer: dict[str, Any]
    scaler: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    best: _Best | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    fingerprint: str


def load_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any], where: Path) -> None:
    """``optimizer.load_state_dict`` for a state that may be another's or damaged. Raises ExciteError in that case."""
    try:
        own = optimizer.state_dict()["param_groups"]
        groups = stored["param_groups"]
        if len(groups) != len(own):
            raise ValueError(f"it has {len(groups)} groups of parameters, this run {len(own)}")
        for mine, theirs in zip(own, groups, strict=True):
            for key, value in mine.items():
                _check_setting(key, value, theirs[key])
        optimizer.load_state_dict(stored)
        if type(optimizer).__module__.startswith("torch.optim"):  # others keep what has other shapes
            for parameter, kept in optimizer.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    except Exception as error:
        reason = shown_text(f"no {error}" if isinstance(error, KeyError) else first_line(error))
        raise ExciteError(
            f"the optimiser's state in {where} does not fit this run ({reason}); delete that folder to resume from the "
            "checkpoint before it"
        ) from None


def _check_setting(key: str, mine: Any, theirs: Any) -> None:
    """A rate stays a finite number, a switch a switch; what it is, the schedule or the recipe has said."""
    numbers = (int, float)
    both = [type(v) in numbers for v in (mine, theirs)]
    if both[0] != both[1] or (
        not both[0] and mine is not None and theirs is not None and type(mine) is not type(theirs)
    ):
        raise ValueError(f"{key} is {shown(theirs)}")
    if both[1] and not math.isfinite(theirs):
        raise ValueError(f"{key} is {shown(theirs)}")
    if isinstance(mine, tuple) and len(mine) != len(theirs):
        raise ValueError(f"{key} is {shown(theirs)}")


def find_weights(source: str | Path) -> Path:
    """The weights file that ``source`` means: a run folder, a checkpoint folder, or the file itself.

    A run folder means its best weights so far, or those of its latest checkpoint where none was evaluated yet; in a
    checkpoint folder the moving average comes before the raw weights.

    Raises:
        ExciteError: there is nothing like it at ``source``.
    """
    path = weights_at(source, (EMA, WEIGHTS)) if isinstance(source, str) and is_remote(source) else Path(source)
    if path.is_file():
        return path
    if not path.exists():
        raise ExciteError(f"there is no run folder or checkpoint {str(source)!r}")
    steps = saved_steps(path)
    folders = [path, *([step_folder(path, steps[-1])] if steps else [])]
    for folder in folders:
        for name in (EMA, WEIGHTS):
            if (folder / name).is_file():
                return folder / name
    raise ExciteError(
        f"{path} holds no {WEIGHTS} and no checkpoints: it is no run folder, or nothing was saved in it yet"
    )


def read_weights(source: str | Path) -> Checkpoint:
    """Load a weights file written by this package.

    Args:
        source: a run folder, a checkpoint folder or a ``.safetensors`` file, also at an address such as ``s3://...``.

    Raises:
        ExciteError: nothing there, a damaged file, or one that this package did not write.
    """
    path = find_weights(source)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("excite")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ExciteError(f"{path} is not a readable safetensors file: {first_line(error)}") from None
    if header is None:
        raise ExciteError(f"{path} was not written by excite: its header does not say which model it belongs to")
    meta = read_header(header, path)
    check_arguments(path, meta["model"]["args"], tensors)
    return Checkpoint(path, tensors, meta)


def build_network(path: str | Path, model: Mapping[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The network that a header names, with fresh weights, once it is known to have the tensors of the file.

    It is first built without memory for its weights (on the meta device), so that a header which says a billion classes
    costs nothing.

    Args:
        path: the file, for messages.
        model: ``model`` of a header that ``read_header`` checked.
        tensors: of the file.

    Raises:
        ExciteError: there is no such network, its arguments are wrong, or it has other tensors.
    """
    from excite.models import create_model
    from excite.models.timm_models import PREFIX

    name, args = model["name"], dict(model["args"])
    check_arguments(path, args, tensors)
    try:
        with torch.device("meta"):
            misfits = mismatches(create_model(name, **args), tensors)
    except Exception as error:
        # Some of timm's code computes with numbers as it builds, which the meta device does not have.
        if isinstance(error, ExciteError) or not name.startswith(PREFIX):
            raise _not_made(path, error) from None
        misfits = []
    if misfits:
        raise ExciteError(f"{path} does not fit this model: {_listed(misfits)}")
    try:
        return create_model(name, **args)
    except Exception as error:
        raise _not_made(path, error) from None


def _not_made(path: str | Path, error: Exception) -> ExciteError:
    if isinstance(error, ExciteError):
        return ExciteError(f"{path}: the network of its header cannot be made: {error}")
    reason = shown_text(first_line(error))
    return ExciteError(f"{path}: the network of its header cannot be made: model.args are wrong ({reason})")


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a model of the same shape. Raises ExciteError that lists what does not fit."""
    misfits = mismatches(model, checkpoint.tensors)
    if misfits:
        raise ExciteError(f"{checkpoint.path} does not fit this model: {_listed(misfits)}")
    model.load_state_dict(checkpoint.tensors)


def init_from(model: nn.Module, source: str, head: str = "fc") -> list[str]:
    """Start ``model`` from a checkpoint; a classifier of another size keeps its fresh weights.

    So do gates that start as the identity (``create_gate({..., "identity": True})``) and of which the checkpoint has
    nothing: with them the network computes what the one without gates did.

    Returns:
        The names of the tensors that were not taken over (the classifier's, the gates', or none).

    Raises:
        ExciteError: the checkpoint does not fit otherwise.
    """
    return take_over(model, read_weights(source), head)


def take_over(model: nn.Module, checkpoint: Checkpoint, head: str = "fc") -> list[str]:
    """:func:`init_from` for a checkpoint that is read already."""
    own = model.state_dict()
    resized = [
        k for k, v in checkpoint.tensors.items() if k.startswith(f"{head}.") and k in own and v.shape != own[k].shape
    ]
    tensors = {k: v for k, v in checkpoint.tensors.items() if not (resized and k.startswith(f"{head}."))}
    fresh = [k for k in own if resized and k.startswith(f"{head}.")]
    lacking = [k for k in own if k not in tensors]
    gates = fresh_gates(model, lacking)
    fresh += [k for k in lacking if any(k.startswith(f"{gate}.") for gate in gates)]
    misfits = mismatches(model, tensors, set(fresh))
    if misfits:
        raise ExciteError(_other_network(model, checkpoint, misfits))
    _check_gates(model, checkpoint, gates)
    model.load_state_dict(tensors, strict=False)
    return fresh


def _other_network(model: nn.Module, checkpoint: Checkpoint, misfits: list[str]) -> str:
    """That a checkpoint does not fit, which network it is of where that is known, and what does not fit."""
    mine = str(getattr(model, "model_name", type(model).__name__))
    theirs = checkpoint.meta.get("model", {}).get("name")
    is_other = f"it is {theirs}, which model.name={theirs} takes; " if theirs not in (None, mine) else ""
    return (
        f"train.init_from: {checkpoint.path} does not fit {mine}: {is_other}"
        f"{len(misfits)} tensors are missing, left over or of another shape: {_listed(misfits, 3)}"
    )


def _check_gates(model: nn.Module, checkpoint: Checkpoint, fresh: Collection[str]) -> None:
    """Refuse gates whose tensors fit but compute something else than those of the checkpoint; ``fresh`` take none."""
    from excite.models import Classifier
    from excite.weights.convert import check_blocks, gated
    from excite.weights.function import other_gates_of_ours, other_gates_of_timms, refuse

    written = checkpoint.meta.get("model")
    if not written:
        return
    if not isinstance(model, Classifier):
        if two := other_gates_of_timms(model, written["args"]):
            raise refuse(f"train.init_from: {checkpoint.path}", two)
        return
    slots = {name.removesuffix(".gate") for name in fresh}
    different = other_gates_of_ours(model, written["name"], written["args"])
    if others := {slot: two for slot, two in different.items() if slot not in slots}:
        raise refuse(f"train.init_from: {checkpoint.path}", others)
    has_gates = gated(written["name"], written["args"])
    check_blocks(model, f"train.init_from: {checkpoint.path}", written["name"], written["args"], has_gates)


def fresh_gates(model: nn.Module, lacking: Collection[str]) -> list[str]:
    """Names of the gates that start as the identity and whose tensors are all among ``lacking``."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Gate) and module.identity and all(f"{name}.{k}" in lacking for k in module.state_dict())
    ]


def mismatches(model: nn.Module, tensors: dict[str, Tensor], may_lack: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """What is missing, left over or of another shape, one clause each."""
    own = model.state_dict()
    missing = [f"{k} is missing" for k in own if k not in tensors and k not in may_lack]
    extra = [f"{shown_text(k)} is left over" for k in tensors if k not in own]
    shapes = [
        f"{k} has shape {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and v.shape != own[k].shape
    ]
    return missing + extra + shapes


def _listed(clauses: list[str], most: int = 8) -> str:
    more = f"; and {len(clauses) - most} more" if len(clauses) > most else ""
    return "; ".join(clauses[:most]) + more
