"""Says what is being waited for: a store may accept connections and never answer."""

from contextlib import AbstractContextManager

from excite.runtime.waiting import Waits
from excite.storage.address import without_secrets

#: Apart from the waits of the training, which go on while uploads wait.
waits = Waits()


def waiting_for(url: str) -> AbstractContextManager[None]:
    """While the block lasts, lines after 60 s and then after twice the time say what is waited for."""
    shown = without_secrets(url)
    return waits.waiting(lambda: f"{shown} to answer")
