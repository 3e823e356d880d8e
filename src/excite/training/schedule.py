"""The learning rate as a pure function of the step: there is no state to save or to lose on resume."""

import math

from excite.recipe import Recipe, ScheduleConfig

#: For "cosine_linear": periods of the cosine factor, and the floor as a fraction of the peak (MindSpore's model zoo).
COSINE_LINEAR_PERIODS, COSINE_LINEAR_FLOOR = 0.47, 1e-5


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of optimiser step ``step`` (counted from 0).

    The warm-up rises linearly from ``warmup_lr`` to the peak. With ``warmup_peak`` "last", its last step (or epoch) has
    the peak: index i of n has ``warmup_lr + (peak - warmup_lr) * (i + 1) / n``. With "next", it starts at ``warmup_lr``
    and the first step after it has the peak, as in timm and torchvision: ``... * i / n``. (A warm-up of one epoch that
    changes per epoch is then constant.) The curve covers the rest of the training. Its progress t is 0 at its first
    step and would be 1 one step after the last:

    - cosine: ``end + (peak - end) * (1 + cos(pi t)) / 2`` (SGDR, Loshchilov & Hutter 2017, eq. 5, one period)
    - linear: ``end + (peak - end) * (1 - t)``; polynomial: the same with ``(1 - t) ** power``
    - cosine_linear: ``end + (peak - end) * (1 - t) * (1 + cos(2 pi 0.47 t)) / 2 + 1e-5 * peak``, the "cosine" of
      MindSpore's model zoo (GENet_Res50's lr_generator.py; TensorFlow's linear_cosine_decay with num_periods 0.47,
      alpha 0, beta 1e-5). With a warm-up we shift the whole curve; the model zoo shifts (1 - t) but not the cosine.
    - exponential: ``peak * gamma ** (e / step_epochs)``, e = epochs since the warm-up (whole epochs with unit "epoch")
    - step, multistep: ``peak * gamma ** k``, k = changes so far, counted in epochs from the start of training
    - constant: ``peak``
    """
    unit = 1 if schedule.unit == "step" else steps_per_epoch
    position, total = step // unit, epochs * steps_per_epoch / unit
    warmup = schedule.warmup_epochs * steps_per_epoch / unit
    if position < warmup:
        risen = (position + (schedule.warmup_peak == "last")) / warmup
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * min(1.0, risen)
    epoch = step // steps_per_epoch
    if schedule.name == "step":
        return peak * schedule.gamma ** (epoch // schedule.step_epochs)
    if schedule.name == "multistep":
        return peak * schedule.gamma ** sum(epoch >= m for m in schedule.milestones)
    if schedule.name == "exponential":
        return peak * schedule.gamma ** ((position - warmup) * unit / steps_per_epoch / schedule.step_epochs)
    if schedule.name == "constant":
        return peak
    t = (position - warmup) / (total - warmup)
    span = peak - schedule.end_lr
    if schedule.name == "cosine_linear":
        wave = (1 + math.cos(2 * math.pi * COSINE_LINEAR_PERIODS * t)) / 2
        return schedule.end_lr + span * (1 - t) * wave + COSINE_LINEAR_FLOOR * peak
    shape = {"cosine": (1 + math.cos(math.pi * t)) / 2, "linear": 1 - t, "polynomial": (1 - t) ** schedule.power}
    return schedule.end_lr + span * shape[schedule.name]


def beyond_the_end(recipe: Recipe) -> list[str]:
    """One sentence for each change that a recipe schedules after its last epoch, so that it never happens.

    (A warm-up that is too long is an error in the recipe. The last epoch is always evaluated and saved.)
    """
    schedule, epochs, found = recipe.schedule, recipe.train.epochs, []
    late = [m for m in schedule.milestones if m >= epochs]
    if schedule.name == "multistep" and late:
        which = ", ".join(map(str, late))
        left = "the rate never drops" if len(late) == len(schedule.milestones) else "the rate does not drop there"
        found.append(f"schedule.milestones {which} come after the end (train.epochs={epochs}): {left}")
    if schedule.name == "step" and schedule.step_epochs >= epochs:
        found.append(
            f"schedule.step_epochs={schedule.step_epochs} comes after the end (train.epochs={epochs}): the rate never "
            "drops"
        )
    if recipe.train.freeze and recipe.train.freeze_epochs is not None and recipe.train.freeze_epochs >= epochs:
        found.append(
            f"train.freeze_epochs={recipe.train.freeze_epochs} comes after the end (train.epochs={epochs}): the "
            "parameters in train.freeze stay frozen to the end"
        )
    late_frozen = {name: epoch for name, epoch in recipe.train.freeze_from.items() if epoch >= epochs}
    if late_frozen:
        found.append(
            f"train.freeze_from of {', '.join(late_frozen)} comes after the end (train.epochs={epochs}): nothing is "
            "frozen there"
        )
    return found
