"""Checkpoints of a run: weights as safetensors, the rest loadable with ``weights_only=True``. No pickled code.

A run folder holds ``checkpoints/step-00001234/`` with ``model.safetensors``, ``ema.safetensors`` (with EMA),
``state.pt`` (optimiser, loss scale, counters) and ``manifest.json`` (the SHA-256 of the others), and at its root
``model.safetensors``: the best weights to evaluate, predict with and ship. The weights files are those of
:mod:`excite.weights.own`. The same training gives the same files, but for the time in the manifest.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict  # see excite.training.results

from excite.errors import ExciteError, explain, first_line, shown, shown_text
from excite.files import patient, read_typed, sha256_of, write_json, written_aside
from excite.owners import remove_leftovers
from excite.storage.identity import read_begun
from excite.training.results import Best
from excite.weights.header import Meta
from excite.weights.locate import EMA, MANIFEST, STATE, WEIGHTS, checkpoint_steps, saved_steps, step_folder
from excite.weights.own import Checkpoint, read_own, save_weights
from excite.weights.pytorch import check_zip

_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@with_config(ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True))
class State(TypedDict):
    """What a resumed run needs besides the weights: plain values and tensors only.

    Attributes:
        optimizer: the state_dict of :mod:`torch.optim`; :func:`load_optimizer` compares it with the run's optimiser.
        parameters: names of the optimiser's parameters, in its order.
        fingerprint, parts: of all images, and of the training and of the validation images.
        bad: path -> reason of the images that could not be read so far.
        evaluated: the last step whose evaluation is done; -1 if that of the start is not. Where it is due at ``step``
            and not done, it failed, and a resumed run begins with it. Older versions saved nothing then.
        seconds: training time so far; newer versions have it in the manifest.
        teacher: digest of the teacher, if there is one.
        lookahead: the slow weights, if there are any.
    """

    step: _Count
    steps_per_epoch: Annotated[int, Field(ge=1, lt=1 << 53)]
    optimizer: dict[str, Any]
    parameters: NotRequired[list[str]]
    scaler: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    best: Best | None
    fingerprint: str
    parts: NotRequired[dict[str, str]]
    bad: NotRequired[dict[str, str]]
    evaluated: NotRequired[Annotated[int, Field(ge=-1, lt=1 << 53)]]
    seconds: NotRequired[_Seconds]
    teacher: NotRequired[str]
    lookahead: NotRequired[dict[str, Tensor]]


class FileRecord(TypedDict):
    """The size of a file in bytes and its SHA-256 in hexadecimal, as by ``sha256sum``."""

    bytes: _Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(ConfigDict(strict=True, extra="allow"))
class Manifest(TypedDict):
    """The contents of ``manifest.json``, which is written last.

    Attributes:
        run: identity of the run; "" if it has none.
        seconds: training time so far.
        files: file name -> record, of every other file of the checkpoint.
    """

    format_version: int
    run: str
    step: _Count
    seconds: _Seconds
    files: dict[str, FileRecord]


class Damaged(ExciteError):
    """A checkpoint that is incomplete, changed, or another one than its folder says."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of everything that a checkpoint holds, on the CPU, so that training can go on while it is written.

    Attributes:
        model, ema: state_dicts; ``ema`` is None without a moving average.
        meta, ema_meta: their headers.
        seconds: training time so far.
        run_id: identity of the run; "" if it has none.
    """

    state: State
    model: Mapping[str, Tensor]
    meta: Meta
    ema: Mapping[str, Tensor] | None
    ema_meta: Meta
    seconds: float
    run_id: str = ""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has been read and checked."""

    folder: Path
    state: State
    weights: Checkpoint
    ema: Checkpoint | None
    seconds: float


def save_step(run: Path, snapshot: Snapshot) -> Path:
    """Write ``checkpoints/step-N`` atomically and return it. Raises ExciteError if the disk is full.

    A folder that is in its place is kept if it is a whole checkpoint (a run is a function of its step), else set aside.
    One that was saved before its evaluation is replaced by one that was saved after it.
    """
    step = snapshot.state["step"]
    folder = step_folder(run, step)
    if folder.exists():
        try:
            there = read_step(folder, snapshot.run_id)
        except ExciteError:
            set_aside(folder)
        else:
            if evaluated_at(snapshot.state) <= evaluated_at(there.state):
                return folder
    with written_aside(folder, over=True) as aside:
        aside.mkdir()
        save_weights(aside / WEIGHTS, snapshot.model, snapshot.meta)
        if snapshot.ema is not None:
            save_weights(aside / EMA, snapshot.ema, snapshot.ema_meta)
        with patient(aside / STATE) as file:
            torch.save(snapshot.state, file)
        files = {path.name: _record(path) for path in sorted(aside.iterdir())}
        manifest: Manifest = {
            "format_version": 1,
            "run": snapshot.run_id,
            "step": step,
            "seconds": snapshot.seconds,
            "files": files,
        }
        write_json(aside / MANIFEST, manifest)
    _good[folder.absolute()] = _stamps(folder)
    return folder


def evaluated_at(state: State) -> int:
    """The last step whose evaluation is done; versions that do not say so saved only after evaluations."""
    return state.get("evaluated", state["step"])


def _record(path: Path) -> FileRecord:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def set_aside(folder: Path, kind: str = "damaged") -> Path:
    """Rename a checkpoint folder so that nothing takes it for a checkpoint. Nothing is deleted. Returns the new path.

    Raises:
        ExciteError: it cannot be renamed.
    """
    number = 0
    while True:
        aside = folder.with_name(f"{kind}-{folder.name}" + (f"-{number}" if number else ""))
        if not aside.exists():
            break
        number += 1
    try:
        return folder.rename(aside)
    except OSError as error:
        raise ExciteError(f"{folder} could not be renamed to {aside.name}: {error.strerror or error}") from None


def identity(run: Path) -> str:
    """The id of a run, which its checkpoints carry; "" for runs of versions that had none.

    If ``run.json`` names another run than all checkpoints do, it is ``run.json`` that is damaged.
    """
    known = read_begun(run)
    own = "" if known is None else known["id"]
    theirs = set()
    for step in checkpoint_steps(run):
        with suppress(ExciteError):
            theirs.add(read_typed(step_folder(run, step) / MANIFEST, Manifest, "")["run"])
    theirs.discard("")
    return theirs.pop() if len(theirs) == 1 else own


def read_step(folder: Path, run_id: str = "") -> Saved:
    """Read a checkpoint folder and check its contents.

    Args:
        folder: ``RUN/checkpoints/step-N``.
        run_id: the identity of the run.

    Each byte of the weights is hashed twice, which takes 0.19 s and 0.17 s for 300 MB (AMD EPYC with SHA instructions).
    That is not the same twice: the manifest has what was on the disk, the digest in a weights file what was in memory
    before it was written.

    Raises:
        Damaged: a file is missing, or is not what was written; it belongs to another step or run; its weights are not
            finite.
    """
    try:
        stamps = _stamps(folder)
        manifest = _check_files(folder, run_id)
        state, weights = load_state(folder), read_own(folder / WEIGHTS)
        ema = read_own(folder / EMA) if (folder / EMA).is_file() else None
    except Damaged:
        raise
    except ExciteError as error:
        raise Damaged(str(error)) from None
    step = _step_of(folder)
    found = {STATE: state["step"], WEIGHTS: weights.meta["step"], **({EMA: ema.meta["step"]} if ema else {})}
    if wrong := {name: other for name, other in found.items() if other != step}:
        name, other = next(iter(wrong.items()))
        raise Damaged(f"{folder / name} is of step {other}")
    for checkpoint in (weights, ema):
        if checkpoint is not None and (infinite := first_not_finite(checkpoint.tensors)):
            raise Damaged(f"{infinite} in {checkpoint.path} has values that are not finite")
    if manifest is None and weights.digest is not None:  # only versions without manifests wrote no digests
        raise Damaged(f"{folder} has no {MANIFEST}")
    seconds = state.get("seconds", 0.0) if manifest is None else manifest["seconds"]
    _good[folder.absolute()] = stamps
    return Saved(folder, state, weights, ema, seconds)


def _step_of(folder: Path) -> int:
    return int(folder.name.partition("-")[2])


#: Checkpoints that this process has written, or compared with their manifest -> what their files looked like then.
_good: dict[Path, dict[str, tuple[int, int, int]]] = {}


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """File name -> size and times, which show that it was written to since."""
    found = {path.name: path.stat() for path in folder.iterdir()} if folder.is_dir() else {}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found.items()}


def _why_not_good(folder: Path, run_id: str) -> str:
    """What is wrong with the files of a checkpoint; "" for a good one.

    They are read once in each process; one that this process wrote was read for its manifest. After that, their sizes
    and times tell. A disk that loses bits later, without writing, is only noticed by the next process.
    """
    try:
        stamps = _stamps(folder)
        if _good.get(folder.absolute()) != stamps:
            _check_files(folder, run_id)
            _good[folder.absolute()] = stamps
    except ExciteError as error:
        return str(error)
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror or error}"
    return ""


def _check_files(folder: Path, run_id: str) -> Manifest | None:
    """Compare every file with the manifest; None if there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        if missing := [name for name in (STATE, WEIGHTS) if not (folder / name).is_file()]:
            raise Damaged(f"{folder} has no {' and no '.join(missing)}")
        return None
    manifest = read_typed(path, Manifest, "it is left out")
    for name, record in manifest["files"].items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise Damaged(f"{folder} has no {shown_text(name)}")
        if (size := file.stat().st_size) != record["bytes"]:
            raise Damaged(f"{file} has {size:,} bytes instead of {record['bytes']:,}")
        try:
            found = sha256_of(file)
        except OSError as error:  # a failing disk
            raise Damaged(f"{file} cannot be read: {error.strerror or error}") from None
        if found != record["sha256"]:
            raise Damaged(f"{file} is not what was written: its SHA-256 differs from the one in {MANIFEST}")
    if lacking := {STATE, WEIGHTS} - manifest["files"].keys():
        raise Damaged(f"{path} does not list {' and '.join(sorted(lacking))}")
    if manifest["step"] != _step_of(folder):
        raise Damaged(f"{folder} is of step {manifest['step']}")
    if run_id and manifest["run"] and manifest["run"] != run_id:
        raise Damaged(f"{folder} is a checkpoint of another run ({shown_text(manifest['run'])})")
    return manifest


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite. Waits once for each device."""
    for device in {tensor.device for tensor in tensors.values()}:
        names = [name for name, t in tensors.items() if t.device == device and t.is_floating_point() and t.numel()]
        if not names:
            continue
        # A finite sum has finite terms; reading once costs a third of isfinite(). Large terms may overflow in the sum.
        sums = torch.stack([tensors[name].sum(dtype=torch.float32) for name in names]).isfinite().tolist()
        for name, finite in zip(names, sums, strict=True):
            if not finite and not bool(tensors[name].isfinite().all()):
                return name
    return None


def prune(run: Path, keep_last: int, best: int | None, run_id: str = "") -> list[str]:
    """Delete all checkpoints but the last ``keep_last`` good ones and the best, and what dead processes left.

    Those that stay are known to be good (:func:`_why_not_good`). One that is not is renamed as :func:`set_aside` does:
    it is neither counted nor deleted.

    Returns:
        Sentences about checkpoints that are not good.
    """
    kept, damaged, told = set[int](), set[int](), list[str]()
    for step in reversed(saved_steps(run)):
        if len(kept) >= keep_last and step != best:
            continue
        folder = step_folder(run, step)
        if why := _why_not_good(folder, run_id):
            damaged.add(step)
            with suppress(ExciteError):  # it cannot be renamed: the next process tries again
                name = set_aside(folder).name
                told.append(f"the checkpoint of step {step} is not good and is kept as {name}: {why}")
        else:
            kept.add(step)
    for step in set(saved_steps(run)) - kept - damaged:
        _good.pop(step_folder(run, step).absolute(), None)
        shutil.rmtree(step_folder(run, step), ignore_errors=True)
    for folder in (run, run / "checkpoints"):
        remove_leftovers(folder)
    return told


def load_state(folder: Path) -> State:
    """Read ``state.pt`` of a checkpoint folder. Executes no code, and allocates no more than the file can back.

    Raises:
        Damaged: the file is damaged.
    """
    path = folder / STATE
    try:
        check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        TypeAdapter(State).validate_python(state)
    except ValidationError as error:
        why = "; ".join(explain(e) for e in error.errors()[:3])
        raise Damaged(f"{path} is damaged ({why})") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise Damaged(f"{path} is damaged ({shown_text(first_line(error))})") from None
    return cast(State, state)


#: What a recipe says of a group of parameters; everything else in a group is the optimiser's own state. So is "lr", the
#: learning rate of the last step: each step sets its own, and a run that saves before its next step saves the same.
_SETTINGS = frozenset(
    (
        *("weight_decay", "momentum", "nesterov", "betas", "eps", "dampening", "fused"),
        *("lr_scale", "thaws_at", "freezes_at", "muon"),
    )
)
#: Settings that only some groups have.
_OF_SOME = frozenset(("freezes_at", "muon"))


def load_optimizer(
    optimizer: torch.optim.Optimizer, stored: dict[str, Any], where: Path, names: Sequence[str], before: Sequence[str]
) -> list[str]:
    """Give the optimiser the state of a checkpoint, parameter by parameter. Its settings stay those of the recipe.

    Args:
        optimizer: the run's optimiser.
        stored: the state_dict of the checkpoint's.
        where: the checkpoint, for messages.
        names: names of the optimiser's parameters, in its order.
        before: the same for the checkpoint's; empty for checkpoints of older versions, which have the same parameters.

    Returns:
        The names of parameters that the checkpoint has no state for, because they were frozen.

    Raises:
        Damaged: the state is damaged or of another optimiser.
    """
    try:
        state = _for_these(optimizer, stored, names, before or names)
        optimizer.load_state_dict(state)
        if type(optimizer).__module__.startswith("torch.optim"):  # other optimisers keep state of other shapes
            _check_shapes(optimizer)
    except Exception as error:
        reason = shown_text(f"no {error}" if isinstance(error, KeyError) else first_line(error))
        raise Damaged(f"the optimiser state in {where} does not fit this run ({reason})") from None
    return [name for name in names if before and name not in before]


def _for_these(
    optimizer: torch.optim.Optimizer, stored: dict[str, Any], names: Sequence[str], before: Sequence[str]
) -> dict[str, Any]:
    """The stored state in the order of the optimiser's own parameters, with its own settings."""
    own, groups = optimizer.state_dict(), stored["param_groups"]
    mine = own["param_groups"]
    count = sum(len(group["params"]) for group in groups)
    if count != len(before):
        raise ValueError(f"it has {count} parameters, this run {len(before)}")
    same = len(groups) == len(mine) and all(a["params"] == b["params"] for a, b in zip(mine, groups, strict=True))
    theirs = groups if same and list(before) == list(names) else [groups[0]] * len(mine)
    merged = []
    for group, other in zip(mine, theirs, strict=True):
        for key, value in group.items():
            if key != "params" and (key in other or key not in _OF_SOME):
                _check_setting(key, value, other[key])
        kept = {key: value for key, value in other.items() if key not in _SETTINGS and key != "params"}
        merged.append({**group, **kept})
    places = {name: index for index, name in enumerate(before)}
    state = dict(own["state"])
    for index, name in enumerate(names):
        if (at := places.get(name)) is not None and at in stored["state"]:
            # A setting such as SGD's momentum may have been added since: what it needs is there already.
            state[index] = {**state.get(index, {}), **stored["state"][at]}
    if strange := stored["state"].keys() - set(places.values()):
        raise ValueError(f"it has a state of parameter {shown(min(strange, key=str))}")
    return {**own, "state": state, "param_groups": merged}


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")


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
