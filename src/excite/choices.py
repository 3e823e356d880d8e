"""What options may be that are a word out of few, and how a wrong one is told. Imports nothing heavy, so that commands
tell it before they load PyTorch.
"""

import re
from collections.abc import Iterable

from excite.errors import ExciteError, nearest, shown

#: What a recipe's ``device`` may name, and how people call it.
DEVICES = {"cpu": "CPU", "cuda": "CUDA GPU", "npu": "Ascend NPU", "xpu": "Intel XPU", "mps": "Apple GPU"}
#: The environment variable by which each driver is told to show some of its cards only.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
#: How ``excite explain`` finds what a gate is worth.
ABLATIONS = ("full", "estimate", "off")
#: How grafted gates start.
INITS = ("identity", "paper")
#: Whose names ``excite convert`` writes weights under.
TARGETS = ("excite", "timm", "torchvision")
#: What an exported network takes: images of any size, or prepared ones.
INPUTS = ("uint8", "float")


def check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ExciteError where ``value`` is none of ``allowed``; ``what`` is the option, such as ``--init``."""
    allowed = list(allowed)
    if value not in allowed:
        raise ExciteError(f"{what} is {shown(value)}{nearest(value, allowed)} (allowed: {', '.join(allowed)})")


def check_precision(precision: str, what: str = "precision") -> None:
    """Raise ExciteError where there is no such precision."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ExciteError(f"{what} is {shown(precision)}; choose auto, fp32, bf16 or fp16")


def check_device(device: str) -> None:
    """Raise ExciteError where there is no such kind of device; whether this machine has one, only PyTorch knows."""
    kind, colon, index = device.partition(":")
    if kind not in ("auto", *DEVICES):
        raise ExciteError(f"device is {shown(device)}; choose one of auto, {', '.join(DEVICES)}")
    if colon:
        how = f" and choose the card with {_VISIBLE[kind]}={index}" if kind in _VISIBLE else ""
        raise ExciteError(f"device is {shown(device)}, but it names a kind: write device={kind}{how}")


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: str | float, option: str) -> float:
    """``1h30m`` -> 5400.0 seconds, which a number is already. Raises ExciteError where it is no time above 0."""
    if isinstance(text, int | float):
        text = f"{text}s"
    given = text.strip().lower()
    match = _DURATION.fullmatch(given)
    parts = () if match is None else zip(match.groups(), (3600, 60, 1), strict=True)
    seconds = sum(float(number or 0) * unit for number, unit in parts)
    if seconds <= 0:
        hint = f"; for minutes type {option} {given}m" if re.fullmatch(r"\d+(\.\d+)?", given) else ""
        raise ExciteError(f"{option} is {shown(text)}, but a time is written 90s, 20m or 1h30m{hint}")
    return seconds
