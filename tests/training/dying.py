"""Decoders that die, hang or wait at a chosen image: for worker processes, which import them from here."""

import os
import signal
import time
from typing import Any

from excite.data import loader


class Dying(loader.FileDecoder):
    """Ends its process with the signal in an image's name, as in ``3-SIGKILL.png``, the first time that it is read;
    ``3-hold.png`` is read when there is ``3-hold.png.go``."""

    def _decode(self, index: int, asked: int, epoch: int, out: Any) -> Any:
        path = self.files.paths[index]
        name = os.path.basename(path).partition(".")[0].partition("-")[2]
        if name == "hold":
            _first(f"{path}.met")
        while name == "hold" and not os.path.exists(f"{path}.go"):
            time.sleep(0.01)
        if name.startswith("SIG") and _first(f"{path}.met"):
            os.kill(os.getpid(), getattr(signal, name))
        return super()._decode(index, asked, epoch, out)


def _first(place: str) -> bool:
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
