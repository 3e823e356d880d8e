"""Imported by the server that decoding workers are forked from, and nowhere else: loads the decoder for all of them.

It takes them out of the process group of the training process. Launchers (torchrun, Slurm) send SIGTERM to that whole
group, and a training process that is to save first must not lose its workers; they end with it, whatever ends it.
"""

import os

import excite.data.loader  # noqa: F401

if hasattr(os, "setpgid"):
    os.setpgid(0, 0)
