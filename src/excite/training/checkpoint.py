"""Checkpoints of a run: weights as safetensors, the rest loadable with ``weights_only=True``. No pickled code.

A run folder holds ``checkpoints/step-00001234/`` with ``model.safetensors``, ``ema.safetensors`` (with EMA) and
``state.pt`` (optimiser, loss scale, counters), and at its root ``model.safetensors``: the best weights to evaluate,
predict with and ship. The weights files are those of :mod:`excite.weights.own`.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from safetensors import SafetensorError
from torch import Tensor, nn
from typing_extensions import TypedDict  # see excite.training.results

from excite.errors import ExciteError, explain, first_line, shown, shown_text
from excite.files import patient, written_aside
from excite.training.results import Best
from excite.weights.header import Meta
from excite.weights.locate import EMA, STATE, WEIGHTS, saved_steps, step_folder
from excite.weights.own import save_weights
from excite.weights.pytorch import check_zip


@with_config(ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True))
class State(TypedDict):
    """What a resumed run needs besides the weights: plain values and tensors only. ``optimizer`` is the state_dict of
    :mod:`torch.optim`; :func:`load_optimizer` compares it with the run's optimiser."""

    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    steps_per_epoch: Annotated[int, Field(ge=1, lt=1 << 53)]
    optimizer: dict[str, Any]
    scaler: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    best: Best | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    fingerprint: str


def save_step(run: Path, step: int, model: nn.Module, ema: nn.Module | None, state: State, meta: Meta) -> Path:
    """Write ``checkpoints/step-N`` atomically and return it. Raises ExciteError if the disk is full."""
    folder = step_folder(run, step)
    if (folder / STATE).is_file():  # a run is a function of its step: this is the same checkpoint
        return folder
    with written_aside(folder) as aside:
        aside.mkdir()
        try:
            save_weights(aside / WEIGHTS, model, meta)
            if ema is not None:
                save_weights(aside / EMA, ema, meta)
            with patient(aside / STATE) as file:
                torch.save(state, file)
        except (SafetensorError, RuntimeError) as error:  # both wrap the system's error when the disk is full
            raise _as_os_error(error, aside) from error
    return folder


def _as_os_error(error: Exception, folder: Path) -> OSError:
    code = re.search(r"os error (\d+)", str(error))
    if code:
        return OSError(int(code.group(1)), str(error))
    free = shutil.disk_usage(folder).free
    return OSError(28, str(error)) if free < 1 << 20 else OSError(5, str(error))


def prune(run: Path, keep_last: int, best: int | None) -> None:
    """Delete all checkpoints but the last ``keep_last`` and the best, and any half-written ones left by a kill."""
    steps = saved_steps(run)
    for step in set(steps[:-keep_last]) - {best}:
        shutil.rmtree(step_folder(run, step), ignore_errors=True)
    for leftover in [*run.glob("checkpoints/.*.tmp-*"), *run.glob(".*.tmp-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def load_state(folder: Path) -> State:
    """Read ``state.pt`` of a checkpoint folder. Executes no code, and allocates no more than the file can back.

    Raises:
        ExciteError: the file is damaged.
    """
    path = folder / STATE
    remedy = f"delete {folder} to resume from the checkpoint before it"
    try:
        check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        TypeAdapter(State).validate_python(state)
    except ValidationError as error:
        why = "; ".join(explain(e) for e in error.errors()[:3])
        raise ExciteError(f"{path} is damaged ({why}); {remedy}") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise ExciteError(f"{path} is damaged ({shown_text(first_line(error))}); {remedy}") from None
    return cast(State, state)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any], where: Path) -> None:
    """``optimizer.load_state_dict``; raises ExciteError if the state is damaged or of another optimiser."""
    try:
        own = optimizer.state_dict()["param_groups"]
        groups = stored["param_groups"]
        if len(groups) != len(own):
            raise ValueError(f"it has {len(groups)} groups of parameters, this run {len(own)}")
        for mine, theirs in zip(own, groups, strict=True):
            for key, value in mine.items():
                _check_setting(key, value, theirs[key])
        optimizer.load_state_dict(stored)
        if type(optimizer).__module__.startswith("torch.optim"):  # other optimisers keep state of other shapes
            for parameter, kept in optimizer.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    except Exception as error:
        reason = shown_text(f"no {error}" if isinstance(error, KeyError) else first_line(error))
        raise ExciteError(
            f"the optimiser state in {where} does not fit this run ({reason}); delete that folder to resume from the "
            "checkpoint before it"
        ) from None


def _check_setting(key: str, mine: Any, theirs: Any) -> None:
    """Check the type of a setting: a number stays a finite number, a flag a flag. Its value comes from the recipe."""
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
