"""How a process of ours ends."""

import atexit
import gc


def leave_quickly() -> None:
    """Spare this process Python's last search for reference cycles, which takes PyTorch's modules 1 to 2 s.

    Whatever is closed explicitly or at exit still is.
    """
    atexit.register(gc.freeze)
