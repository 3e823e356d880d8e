"""What the processes of a job know of each other: how far each one is, so that a long wait can name who is missing."""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from excite.files import to_json
from excite.runtime.meeting import JobBoard
from excite.runtime.waiting import FIRST_LINE, patience, waits
from excite.text import tell

#: Seconds between two notes of a process, and between two looks at those of the others; at most a sixth of the time
#: after which a wait is given up.
NOTE_SECONDS = 10.0
#: A process that has left no new note for this many times as long is silent.
SILENT_NOTES = 2.5
_PACKAGE = str(Path(__file__).parents[1]) + os.sep


class Place(TypedDict):
    """How far a process is. ``beat`` counts its notes, ``waits`` says what it waits for besides the others."""

    beat: int
    step: int
    what: str
    waits: bool
    who: str
    silent: NotRequired[float]


#: Of a process that has not left a note yet: it may have stopped before.
_NO_NOTE: Place = {"beat": 0, "step": 0, "what": "", "waits": False, "who": "of which nothing is known"}


@dataclass
class Ranks:
    """The watch of one process over its job; :meth:`tick` is called about every second, in a thread of its own.

    Attributes:
        notes: where the processes leave notes.
        rank, world: who this process is, and how many there are.
        step: gives the number of steps done.
        clock: seconds.
        say: takes a line.
        every: seconds between two notes.
    """

    notes: JobBoard
    rank: int
    world: int
    step: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = tell
    every: float = field(default_factory=lambda: min(NOTE_SECONDS, patience() / 6))
    _progress: tuple[int, int] = (-1, -1)
    _since: float = 0.0
    _due: float = FIRST_LINE
    _noted: float = float("-inf")
    _beat: int = 0
    _heard: dict[int, tuple[Place, float]] = field(default_factory=dict)

    def tick(self) -> None:
        """Leave a note if one is due, and say a line if nothing has moved for long.

        Raises:
            RuntimeError: the notes are gone, and so is the job.
        """
        now, progress = self.clock(), (self.step(), waits.passed)
        if progress != self._progress:
            self._progress, self._since, self._due = progress, now, FIRST_LINE
        if now - self._noted >= self.every:
            self._noted = now
            self._beat += 1
            self.notes.put(f"at-{self.rank}", to_json(self._own_place()))
            if self.rank == 0 or now - self._since >= FIRST_LINE / 2:  # if all listened always, the board would suffer
                self._listen(now)
        seconds = now - self._since
        if seconds >= self._due:
            name = f"waits-{self._progress[0]}-{self._due:.0f}"
            while self._due <= seconds:
                self._due *= 2
            if not self._own_place()["waits"] and self.notes.write_first(name, ""):  # its own wait says itself
                who = self.suspects() or (
                    f"rank {self.rank} is in {main_is_in()}, and all others answer: a long step, or a slow network"
                )
                self.say(f"no step for {seconds:.0f} s, after step {self._progress[0]}: {who}")

    def _own_place(self) -> Place:
        waited = waits.longest()
        what = main_is_in() if waited is None else waited[1]
        who = f"{platform.node()}, process {os.getpid()}"
        return {"beat": self._beat, "step": self.step(), "what": what, "waits": waited is not None, "who": who}

    def _listen(self, now: float) -> None:
        for rank in range(self.world):
            if rank == self.rank:
                continue
            text = self.notes.read(f"at-{rank}")
            place: Place = dict(_NO_NOTE) if text is None else json.loads(text)  # type: ignore[assignment]
            before = self._heard.get(rank)
            if before is None or before[0]["beat"] != place["beat"]:
                self._heard[rank] = (place, now)

    def suspects(self) -> str:
        """Who keeps the others waiting, as a clause; "" if nobody is known to."""
        now = self.clock()
        found = []
        for rank, (place, when) in sorted(self._heard.items()):
            who = f"rank {rank} ({place['who']})"
            if now - when >= SILENT_NOTES * self.every:
                found.append(
                    f"{who} has not answered for {now - when:.0f} s (stopped, out of memory, or its machine gone?)"
                )
            elif place["waits"]:
                found.append(f"{who} waits for {place['what']}")
            elif place["beat"] and place["step"] < self._progress[0]:
                found.append(f"{who} is behind, after step {place['step']}, in {place['what']}")
        return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")


def main_is_in() -> str:
    """Where the main thread is in this package: "train_step (training/loop.py, line 259)"."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "the program that called excite"
    file = frame.f_code.co_filename.removeprefix(_PACKAGE)
    return f"{frame.f_code.co_name} ({file}, line {frame.f_lineno})"
