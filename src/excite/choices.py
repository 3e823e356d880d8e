"""Options with a fixed set of values, and the errors for other values.

Imports nothing heavy, so that commands report a wrong value before they load PyTorch.
"""

import re
from collections.abc import Iterable

from excite.errors import ExciteError, nearest, shown

#: Values of a recipe's ``device``, and their common names.
DEVICES = {"cpu": "CPU", "cuda": "CUDA GPU", "npu": "Ascend NPU", "xpu": "Intel XPU", "mps": "Apple GPU"}
#: The environment variable that restricts each driver to some of its cards.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
#: How ``excite explain`` measures what a gate contributes.
ABLATIONS = ("full", "estimate", "off")
#: Initialisation of grafted gates.
INITS = ("identity", "paper")
#: Libraries whose parameter names ``excite convert`` can write.
TARGETS = ("excite", "timm", "torchvision")
#: Test-time augmentation, and the number of views of each image (``excite.data.views``).
TTA = {"flip": 2, "five": 5, "shift": 6}
#: Input of an exported network: uint8 images of any size, or preprocessed float images.
INPUTS = ("uint8", "float")


def check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ExciteError if ``value`` is not one of ``allowed``; ``what`` names the option, such as ``--init``."""
    allowed = list(allowed)
    if value not in allowed:
        raise ExciteError(f"{what} is {shown(value)}{nearest(value, allowed)} (allowed: {', '.join(allowed)})")


def check_precision(precision: str, what: str = "precision") -> None:
    """Raise ExciteError if the precision is unknown; ``what`` names the option or argument."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ExciteError(f"{what} is {shown(precision)}; choose auto, fp32, bf16 or fp16")


def check_device(device: str) -> None:
    """Raise ExciteError if the kind of device is unknown. Whether this machine has one is checked later, by PyTorch."""
    kind, colon, index = device.partition(":")
    if kind not in ("auto", *DEVICES):
        raise ExciteError(f"device is {shown(device)}; choose one of auto, {', '.join(DEVICES)}")
    if colon:
        how = f" and choose the card with {_VISIBLE[kind]}={index}" if kind in _VISIBLE else ""
        raise ExciteError(f"device is {shown(device)}, but it takes a kind of device: write device={kind}{how}")


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: str | float, option: str) -> float:
    """Parse a duration: ``"1h30m"`` -> 5400.0 seconds; a number is taken as seconds.

    Args:
        text: hours, minutes and seconds, such as ``90s``, ``20m``, ``1h30m``.
        option: the option's name, for the error.

    Raises:
        ExciteError: it is not a duration above 0.
    """
    if isinstance(text, int | float):
        text = f"{text}s"
    given = text.strip().lower()
    match = _DURATION.fullmatch(given)
    parts = () if match is None else zip(match.groups(), (3600, 60, 1), strict=True)
    seconds = sum(float(number or 0) * unit for number, unit in parts)
    if seconds <= 0:
        hint = f"; for minutes type {option} {given}m" if re.fullmatch(r"\d+(\.\d+)?", given) else ""
        raise ExciteError(f"{option} is {shown(text)}, but it takes a duration such as 90s, 20m or 1h30m{hint}")
    return seconds
