"""Where converted weights go: what the file may be called, checked before anything is read."""

from pathlib import Path

from excite.choices import TARGETS, check_choice
from excite.errors import ExciteError
from excite.files import check_new

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_destination(destination: Path, to: str, force: bool) -> None:
    """Raise ExciteError where ``excite convert`` could not write this file for the library ``to``."""
    check_choice("--to", to, TARGETS)
    check_new(destination, force)
    if to != "excite":
        check_suffix(destination)
    elif destination.suffix != ".safetensors":
        raise ExciteError(f"{destination} must end in .safetensors, the form of excite's weights files")


def check_suffix(path: Path) -> None:
    """Raise ExciteError where a state dict's file name does not say in which form to write it."""
    if path.suffix.lower() not in SUFFIXES:
        raise ExciteError(
            f"{path} must end in one of {', '.join(SUFFIXES)}: the ending says how the weights are written"
        )
