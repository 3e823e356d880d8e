"""The learning rate as a pure function of the step: nothing to save, nothing to lose on resume."""

import math

from excite.recipe import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of optimiser step ``step`` (from 0).

    Warm-up rises linearly from ``warmup_lr`` and is at the peak in its last step (or epoch): index i of n has
    ``warmup_lr + (peak - warmup_lr) * (i + 1) / n``. The curve then runs over what is left of the training; its
    progress t is 0 at its first step and would be 1 one step after the last:

    - cosine: ``end + (peak - end) * (1 + cos(pi t)) / 2`` (SGDR, Loshchilov & Hutter 2017, eq. 5, one period)
    - linear: ``end + (peak - end) * (1 - t)``; polynomial: the same with ``(1 - t) ** power``
    - step, multistep: ``peak * gamma ** k``, k = changes so far, counted in epochs from the start of the training
    """
    unit = 1 if schedule.unit == "step" else steps_per_epoch
    position, total = step // unit, epochs * steps_per_epoch / unit
    warmup = schedule.warmup_epochs * steps_per_epoch / unit
    if position < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * min(1.0, (position + 1) / warmup)
    t = (position - warmup) / (total - warmup)
    epoch = step // steps_per_epoch
    if schedule.name == "step":
        return peak * schedule.gamma ** (epoch // schedule.step_epochs)
    if schedule.name == "multistep":
        return peak * schedule.gamma ** sum(epoch >= m for m in schedule.milestones)
    if schedule.name == "constant":
        return peak
    shape = {"cosine": (1 + math.cos(math.pi * t)) / 2, "linear": 1 - t, "polynomial": (1 - t) ** schedule.power}
    return schedule.end_lr + (peak - schedule.end_lr) * shape[schedule.name]
