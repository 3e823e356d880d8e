"""Imported only by the server that decoding workers are forked from: loads the decoder once for all of them.

It also takes them out of the process group of the training process. Launchers (torchrun, Slurm) send SIGTERM to that
whole group, and a training process that saves first must not lose its workers. They end with it, however it ends.
"""

import os

import excite.data.loader  # noqa: F401

if hasattr(os, "setpgid"):
    os.setpgid(0, 0)
