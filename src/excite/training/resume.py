"""Resuming a run: its last good checkpoint is found, what has changed since is decided on, then it is restored.

Nothing is written before everything has been decided.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list

from excite.errors import ExciteError, first_line, shown
from excite.files import written_aside
from excite.recipe import Recipe, as_yaml
from excite.storage import uploads_to
from excite.text import counted
from excite.training import checkpoint as ckpt
from excite.training.setup import Run
from excite.weights.locate import EMA, WEIGHTS, checkpoint_steps, step_folder
from excite.weights.own import load_into, mismatches, read_own, save_weights

#: Keys that a run keeps to its end, and what of a checkpoint does not fit another value.
_KEPT = {
    **dict.fromkeys(("model.name", "model.options"), "weights are those of another network"),
    **dict.fromkeys(("optimizer.name", "optimizer.options"), "optimiser state is that of another optimiser"),
}
#: Keys without an effect after the start.
_AT_THE_START = ("train.init_from", "train.probe", "model.zero_init_last_gamma")
#: Keys without an effect on the weights; of ``data.root``, the images themselves have been compared.
_HARMLESS = ("log.", "checkpoint.", "report.", "eval.batch_size", "data.workers", "data.root", "name")


@dataclass
class Found:
    """The checkpoint to resume from.

    Attributes:
        passed: (step, reason) of newer ones that are not good.
        newer: steps of newer ones that the user did not choose.
    """

    saved: ckpt.Saved
    passed: list[tuple[int, str]] = field(default_factory=list)
    newer: list[int] = field(default_factory=list)


def restore(run: Run, at: int | None = None) -> None:
    """Restore the last good checkpoint in the run folder, or that of step ``at``.

    Checkpoints that are not good are renamed (``damaged-step-N``), and so are those after ``at``
    (``set-aside-step-N``); nothing is deleted.

    Raises:
        ExciteError: there is no good checkpoint; the recipe or the images have changed in a way that does not go on.
    """
    # One process reads for all: the others may be on machines that do not see the folder.
    read = [_find(run, at) if run.accelerator.is_main_process else None]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(read)
    found = read[0]
    assert found is not None
    saved = found.saved
    _check_images(run, saved)
    _check_length(run, saved)
    _check_teacher(run, saved)
    load_into(run.model, saved.weights)
    run.step, run.best, run.seconds = saved.state["step"], saved.state["best"], saved.seconds
    run.bad_before, run.evaluated_at = dict(saved.state.get("bad", {})), ckpt.evaluated_at(saved.state)
    _note_changes(run, saved)
    _restore_ema(run, saved)
    _restore_lookahead(run, saved)
    _restore_optimizer(run, saved)
    if run.accelerator.is_main_process:
        _put_aside(run, found)
        _check_best(run)


def _find(run: Run, at: int | None) -> Found:
    steps = checkpoint_steps(run.folder)
    if at is not None and at not in steps:
        there = f"it has those of steps {', '.join(map(str, steps))}" if steps else "it has none"
        raise ExciteError(f"{run.folder} has no checkpoint of step {at}: {there}")
    passed: list[tuple[int, str]] = []
    for step in [at] if at is not None else reversed(steps):
        folder = step_folder(run.folder, step)
        try:
            saved = ckpt.read_step(folder, run.identity)
            _check_recipe(run, saved)
            if saved.weights.meta["model"]["name"] == run.model.model_name:
                _check_fit(run, saved)
            return Found(saved, passed, [] if at is None else [one for one in steps if one > at])
        except ckpt.Damaged as error:
            passed.append((step, str(error)))
    if not passed:
        raise ExciteError(_nothing_saved(run.folder))
    raise ExciteError(_nothing_good(run, at, steps, passed))


def _nothing_saved(folder: Path) -> str:
    """The sentence for a run without any checkpoint, with the line that begins the same run again."""
    place = uploads_to(folder) or str(folder)
    told = f"{place} has no checkpoint to resume from: it ended before its first"
    where = shlex.quote(place)
    known = (folder / "recipe.yaml").is_file()
    return told + (f"; to begin it again in its place: excite train {where} --run-dir {where}" if known else "")


def _nothing_good(run: Run, at: int | None, steps: list[int], passed: list[tuple[int, str]]) -> str:
    """The sentence for a run without a good checkpoint (of step ``at``), with the line that goes on nevertheless."""
    which = "" if at is None else f" of step {at}"
    others = f" (nor are its {len(passed) - 1} others)" if len(passed) > 1 else ""
    told = f"{run.folder} has no good checkpoint{which}: {passed[0][1]}{others}"
    if at is not None:
        return told + (f"; the last good one: excite train --resume {run.folder}" if len(steps) > 1 else "")
    try:
        read_own(run.folder / WEIGHTS)
    except ExciteError:
        return f"{told}; to train a new run with its recipe: excite train {run.folder}"
    return (
        f"{told}; its best weights are good, and a new run can start from them: excite train {run.folder} "
        f"train.init_from={run.folder}"
    )


def _check_fit(run: Run, saved: ckpt.Saved) -> None:
    for stored in (saved.weights, saved.ema):
        if stored is not None and (wrong := mismatches(run.model, stored.tensors)):
            raise ckpt.Damaged(f"{stored.path} does not fit this network: {wrong[0]}")


# --- what has changed -------------------------------------------------------------------------------------------------


def changes(run: Run, stored: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of the recipe -> value in the checkpoint and value now, where they differ.

    Args:
        run: the run.
        stored: ``meta["recipe"]`` of a checkpoint. Keys that its version did not have count as unchanged.
    """
    before, now = _flat(stored), _flat(run.recipe_values())
    return {key: (before[key], value) for key, value in now.items() if key in before and before[key] != value}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in values.items():
        flat |= {f"{section}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _check_recipe(run: Run, saved: ckpt.Saved) -> None:
    for key, (before, now) in changes(run, saved.weights.meta["recipe"]).items():
        if key in _KEPT:
            word = shlex.quote(f"{key}={as_yaml(now)}")
            raise ExciteError(
                f"{run.folder} cannot be resumed with {key}={as_yaml(now)}: it was started with {as_yaml(before)}, and "
                f"its {_KEPT[key]}; set it back, or start a new run from its weights: excite train {run.folder} {word} "
                f"train.init_from={run.folder}"
            )


def _check_images(run: Run, saved: ckpt.Saved) -> None:
    state, now = saved.state, run.data.parts
    was, classes = list(saved.weights.meta.get("classes") or ()), list(run.data.classes)
    if was and was != classes:  # the labels are numbers, so the images of renamed classes look unchanged
        changed = [both for both in zip(was, classes, strict=False) if both[0] != both[1]]
        how = f"there were {len(was)}, and now there are {len(classes)}"
        if len(was) == len(classes):
            how = f"{shown(changed[0][0])} is now {shown(changed[0][1])}"
        raise ExciteError(
            f"{run.folder} cannot be resumed: the classes have changed since it was started ({how}); bring them back, "
            f"or start a new run from its weights: excite train {run.folder} train.init_from={run.folder}"
        )
    before = state.get("parts") or {}
    words = {"train": "training", "val": "validation"}
    differing = [word for part, word in words.items() if part in before and before[part] != now.get(part)]
    if not differing and (state["fingerprint"] == run.data.fingerprint or before):
        return
    what = " and the ".join(differing) or "training or the validation"
    keys = {k: v for k, v in changes(run, saved.weights.meta["recipe"]).items() if k.startswith("data.")}
    because = f" ({_said(keys)})" if keys else ""
    raise ExciteError(
        f"{run.folder} cannot be resumed: the {what} images have changed since it was started{because}; bring them "
        f"back, or start a new run from its weights: excite train {run.folder} train.init_from={run.folder}"
    )


def _check_length(run: Run, saved: ckpt.Saved) -> None:
    state = saved.state
    changed = changes(run, saved.weights.meta["recipe"])
    if state["steps_per_epoch"] != run.steps_per_epoch:
        keys = {key: both for key, both in changed.items() if key in ("train.batch_size", "data.limit_train")}
        raise ExciteError(
            f"{run.folder} cannot be resumed: the batch size or the number of images, and so the steps per epoch, have "
            f"changed since it was started (then {state['steps_per_epoch']}, now {run.steps_per_epoch}"
            + (f"; {_said(keys)})" if keys else ")")
        )
    if state["step"] > run.total_steps:
        done = -(-state["step"] // run.steps_per_epoch)
        raise ExciteError(
            f"{run.folder} cannot be resumed with train.epochs={run.recipe.train.epochs}: it is already in epoch "
            f"{done} (step {state['step']}); give train.epochs={done} or more, or resume from an earlier checkpoint: "
            f"excite train --resume {run.folder}@STEP"
        )


def _check_teacher(run: Run, saved: ckpt.Saved) -> None:
    """Refuse a teacher whose weights have changed although the recipe names the same one."""
    before, source = saved.state.get("teacher"), run.recipe.train.teacher
    if run.teacher is None or before is None or before == run.teacher.digest:
        return
    if "train.teacher" not in changes(run, saved.weights.meta["recipe"]):
        raise ExciteError(
            f"{run.folder} cannot be resumed: its teacher {source} has changed since it was started; bring it back "
            "(for a run folder, name the checkpoint: train.teacher=RUN/checkpoints/step-N), or start a new run from "
            f"its weights: excite train {run.folder} train.init_from={run.folder}"
        )


def _note_changes(run: Run, saved: ckpt.Saved) -> None:
    """Say what has changed in the recipe since the checkpoint, and keep the recipe of until then."""
    stored = saved.weights.meta["recipe"]
    changed = changes(run, stored)
    idle = {key: both for key, both in changed.items() if key in _AT_THE_START}
    if idle:
        run.notes.append(f"{', '.join(idle)} only acts at the start of a run: it has no effect on a resumed one")
    acting = {key: both for key, both in changed.items() if key not in idle}
    if run.teacher is not None and saved.state.get("teacher") == run.teacher.digest:
        acting.pop("train.teacher", None)  # the same one in another place
    if not acting:
        return
    run.changed_since = _yaml(stored)
    if all(key.startswith(_HARMLESS) for key in acting):
        told = "the recipe has changed where it has no effect on the weights"
    else:
        told, run.changed_keys = "the recipe has changed, so from this step on it is a different run", _said(acting)
    run.notes.append(f"{told} ({_said(acting)}); the old recipe is in recipe-until-step-{run.step}.yaml")


def _yaml(stored: Mapping[str, Any]) -> str:
    try:
        return Recipe.from_dict({**stored}).to_yaml()
    except ExciteError:  # of another version, with other keys
        return yaml.safe_dump({**stored}, sort_keys=False, allow_unicode=True)


def _said(changed: Mapping[str, tuple[Any, Any]]) -> str:
    most = 6
    clauses = [f"{key}: {as_yaml(before)} -> {as_yaml(now)}" for key, (before, now) in changed.items()]
    return ", ".join(clauses[:most]) + (f" and {len(clauses) - most} more" if len(clauses) > most else "")


# --- restoring --------------------------------------------------------------------------------------------------------


def _restore_ema(run: Run, saved: ckpt.Saved) -> None:
    if run.ema is not None and saved.ema is not None:
        load_into(run.ema.module, saved.ema)
    elif run.ema is not None:
        run.ema.module.load_state_dict(run.model.state_dict())
        run.notes.append("the moving average of the weights starts at this step: the checkpoint has none")
    elif saved.ema is not None:
        run.notes.append("without a moving average from this step on: the one in the checkpoint is not used")


def _restore_lookahead(run: Run, saved: ckpt.Saved) -> None:
    if run.lookahead is None:
        return
    slow = saved.state.get("lookahead")
    if slow is None:
        run.lookahead.restart(run.model)
        run.notes.append("the slow weights (train.lookahead) start at this step: the checkpoint has none")
        return
    try:
        run.lookahead.load(slow)
    except (KeyError, RuntimeError) as error:
        raise ckpt.Damaged(f"the slow weights in {saved.folder} do not fit ({first_line(error)})") from None


def _restore_optimizer(run: Run, saved: ckpt.Saved) -> None:
    state = saved.state
    fresh = ckpt.load_optimizer(
        run.optimizer, state["optimizer"], saved.folder, run.trained_names, state.get("parameters", [])
    )
    if fresh:
        run.notes.append(
            f"a new optimiser state for {counted(len(fresh), 'parameter')} frozen so far, such as {fresh[0]}"
        )
    if not run.scaler.is_enabled():
        return
    if not state["scaler"]:
        run.notes.append("the loss scale of fp16 starts anew: the checkpoint is of another precision")
        return
    try:
        run.scaler.load_state_dict(state["scaler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ckpt.Damaged(f"the state of the loss scale in {saved.folder} does not fit ({error})") from None


def _put_aside(run: Run, found: Found) -> None:
    for step, why in found.passed:
        aside = ckpt.set_aside(step_folder(run.folder, step))
        run.notes.append(f"the checkpoint of step {step} is not good and is kept as {aside.name}: {why}")
    for step in found.newer:
        ckpt.set_aside(step_folder(run.folder, step), "set-aside")
    if found.newer:
        kept = ", ".join(f"set-aside-step-{step:08d}" for step in found.newer)
        run.notes.append(f"resuming from step {run.step}, as asked; later checkpoints are kept as {kept}")


def _check_best(run: Run) -> None:
    """See to it that ``model.safetensors`` holds the best weights so far, as this checkpoint knows them."""
    path = run.folder / WEIGHTS
    if run.best is None:
        return
    try:
        if read_own(path).meta["step"] == run.best["step"]:
            return
        why = "is of a later step"
    except ExciteError as error:
        why = f"is not good ({error})" if path.is_file() else "is missing"
    folder = step_folder(run.folder, int(run.best["step"]))
    try:
        good = ckpt.read_step(folder, run.identity)
    except ExciteError:
        run.notes.append(
            f"{WEIGHTS} {why}, and no checkpoint has the best weights so far (step {run.best['step']}): the best are "
            "chosen from the evaluations that follow"
        )
        run.best, run.best_lost = None, True
        return
    kept, name = (good.weights, WEIGHTS) if good.ema is None else (good.ema, EMA)
    with written_aside(path) as aside:
        save_weights(aside, kept.tensors, kept.meta)
    run.notes.append(f"{WEIGHTS} {why}: the best weights so far are taken from {folder.name}/{name}")
