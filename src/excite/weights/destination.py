"""Checks the file name for converted weights before anything is read."""

from pathlib import Path

from excite.choices import TARGETS, check_choice
from excite.errors import ExciteError
from excite.files import check_new

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_destination(destination: Path, to: str, force: bool) -> None:
    """Raise ExciteError if ``excite convert`` could not write this file for the library ``to``."""
    check_choice("--to", to, TARGETS)
    check_new(destination, force)
    if to != "excite":
        check_suffix(destination)
    elif destination.suffix != ".safetensors":
        raise ExciteError(f"{destination} must end in .safetensors, the format of excite's weights files")


def check_suffix(path: Path) -> None:
    """Raise ExciteError if the file name of a state dict does not determine its format."""
    if path.suffix.lower() not in SUFFIXES:
        raise ExciteError(
            f"{path} must end in one of {', '.join(SUFFIXES)}, which determines the format of the weights"
        )
