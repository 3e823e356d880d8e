"""Ending a process quickly."""

import atexit
import gc


def leave_quickly() -> None:
    """Skip Python's final garbage collection, which takes 1 to 2 s once PyTorch is loaded.

    Whatever is closed explicitly or by ``atexit`` still is.
    """
    atexit.register(gc.freeze)
