"""Decides for each image on its own whether it is held out for validation, in sources without a validation part.

Each image (or group of images) gets a number in 0..1 from a seeded hash of its name, and those below the fraction are
held out. Adding, renaming or deleting an image therefore moves no other image across, on any machine. N: images.
"""

import hashlib
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from excite.data.labels import members as pairs_of
from excite.data.labels import several
from excite.errors import ExciteError, first_line, shown, shown_text


def draw(keys: Sequence[bytes], seed: int) -> np.ndarray:
    """A number in 0..1 for each key, as a pure function of (seed, key): float64 (N,)."""
    start = hashlib.blake2b(f"excite split {seed}\0".encode(), digest_size=8)
    numbers = np.empty(len(keys), dtype=np.uint64)
    for i, key in enumerate(keys):
        state = start.copy()
        state.update(key)
        numbers[i] = int.from_bytes(state.digest(), "little")
    return numbers / 2.0**64


def stable_split(
    keys: Sequence[bytes], labels: Sequence[int] | np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split images into training and validation; returns the positions of each in ascending order.

    An image is held out for validation if the number of its key is below ``fraction``. If that leaves a class without
    images on one side, the nearest of its groups moves there, unless another class would lose its last image by it. A
    class that consists of a single image or group is trained on. If all classes do, groups whose number is below
    ``fraction`` are held out after all (at least one).

    Args:
        keys: name of each image or of its group; images with equal keys stay together.
        labels: class numbers (N,), or uint8 (N, K) of images with several.
        fraction: approximate fraction to hold out, 0 to 1.
        seed: seed of the hash.

    Raises:
        ExciteError: there are fewer than two groups, so nothing can be held out.
    """
    names, group = np.unique(np.array(keys, dtype=object), return_inverse=True)
    if len(names) < 2:
        raise ExciteError(
            f"{len(labels)} images in one group cannot be split into training and validation images; add more, or add "
            "a validation folder"
        )
    number = draw(names.tolist(), seed)
    held_out = number < fraction
    of_images = pairs_of(labels)
    # pairs of class and group that have images
    members = np.unique(np.stack([of_images[0], group[of_images[1]]]), axis=1)
    starts = np.searchsorted(members[0], np.unique(members[0]))
    of_class = np.split(members[1], starts[1:])
    counts = np.zeros((len(of_class), 2), dtype=np.int64)  # groups of each class in training, in validation
    classes_of: dict[int, list[int]] = {}
    for k, groups in enumerate(of_class):
        counts[k] = (~held_out[groups]).sum(), held_out[groups].sum()
        if len(names) < len(labels) or several(labels):
            for g in groups.tolist():
                classes_of.setdefault(g, []).append(k)

    def move(g: int, side: int, own: int) -> bool:
        """Move a group to training (0) or validation (1), unless another class would have none left on its old side."""
        affected = np.array(classes_of.get(g, [own]))
        if (counts[affected[affected != own], 1 - side] == 1).any():
            return False
        held_out[g] = bool(side)
        counts[affected, side] += 1
        counts[affected, 1 - side] -= 1
        return True

    for k, groups in enumerate(of_class):
        for side in (0, 1):
            if counts[k, side] == 0 and (len(groups) > 1 or side == 0):
                nearest = groups[np.argsort(number[groups], kind="stable")]
                any(move(g, side, k) for g in (nearest if side else nearest[::-1]).tolist())
    if not held_out.any():
        held_out = number < fraction
        held_out[number.argmin()] = True
        if held_out.all():
            held_out[number.argmax()] = False
    chosen = held_out[group]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def fold_split(keys: Sequence[bytes], fold: int, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The images outside of a fold, to train on, and those in it, to validate on: positions in ascending order.

    The number of an image's key (:func:`draw`) decides to which fold it belongs, so that each image is in exactly one,
    and adding or deleting images moves no other one. Fold 1 of n is what a fraction of 1/n holds out, except that
    nothing is moved for classes with few images. Folds differ in size as chance has it.

    Args:
        keys: name of each image or of its group; images with equal keys are in the same fold.
        fold: 1 to ``folds``.
        folds: how many there are.
        seed: seed of the hash.

    Raises:
        ExciteError: no image, or every image, is in the fold.
    """
    place = np.minimum((draw(keys, seed) * folds).astype(np.int64), folds - 1) + 1
    inside = place == fold
    if inside.all() or not inside.any():
        groups = len(set(keys))
        raise ExciteError(
            f"data.fold={fold}/{folds} has {'all' if inside.any() else 'none'} of the {len(keys):,} images, which are "
            f"{groups:,} groups or single images; give fewer folds, or another data.split_seed"
        )
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def group_keys(paths: Sequence[str], group_by: int | str, named_by_class: bool = True) -> tuple[list[bytes], int]:
    """The key of each image's group, and the number of images that belong to no group and stand alone.

    Args:
        paths: relative to the data set, separated by "/".
        named_by_class: whether each starts with its class folder, from which levels are counted.
        group_by: a number: the folder at that level below the class folder (1: the first). Or a regular expression: its
            capture groups, or without any its whole match, name the group.

    Raises:
        ExciteError: the pattern is not a regular expression, or does not come to an end; or no image belongs to a
            group.
    """
    if isinstance(group_by, int):
        found = [_level(path, group_by, int(named_by_class)) for path in paths]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise ExciteError(
                f"data.group_by={shown_text(str(group_by))} is not a regular expression: {first_line(error)}"
            ) from None
        found = []
        with _watched(pattern, paths, found):
            for path in paths:
                found.append(_match(pattern, path))
    alone = sum(each is None for each in found)
    if alone == len(paths):
        what = f"no folder at level {group_by} below its class" if isinstance(group_by, int) else "no match"
        raise ExciteError(
            f"data.group_by={shown_text(str(group_by))}: none of {alone:,} images has a group ({what} in {paths[0]!r})"
        )
    keys = [f"\0{path}" if key is None else key for key, path in zip(found, paths, strict=True)]
    return [key.encode("utf-8", "surrogateescape") for key in keys], alone


def _level(path: str, level: int, first: int) -> str | None:
    folders = path.split("/")[first:-1]
    return "/".join(folders[:level]) if len(folders) >= level else None


def _match(pattern: re.Pattern[str], path: str) -> str | None:
    match = pattern.search(path)
    if match is None:
        return None
    return "\0".join(part or "" for part in match.groups()) if pattern.groups else match[0]


#: Seconds of computing that a pattern may take for one path.
SLOWEST_SECONDS = 10.0


@contextmanager
def _watched(pattern: re.Pattern[str], paths: Sequence[str], found: Sequence[object]) -> Iterator[None]:
    """Context in which ``found`` gets one result after the other: a path that takes too long ends it with the sentence.

    Some patterns try all ways to share out a path, twice as many for each letter more; nothing else would ever say so.
    The interpreter looks for signals while it searches. Where there are none (Windows, other threads), nothing is
    watched.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _Watch(pattern, paths, found).tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, SLOWEST_SECONDS, SLOWEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class _Watch:
    """Looks how far a search is; see :func:`_watched`."""

    def __init__(self, pattern: re.Pattern[str], paths: Sequence[str], found: Sequence[object]) -> None:
        self._pattern, self._paths, self._found, self._seen = pattern.pattern, paths, found, -1

    def tick(self, *_: object) -> None:
        """Raise ExciteError if the search is still at the path of the last tick."""
        at, self._seen = self._seen, len(self._found)
        if at == self._seen < len(self._paths):
            raise ExciteError(
                f"data.group_by={shown_text(self._pattern)} does not come to an end: it takes more than "
                f"{SLOWEST_SECONDS:g} s for {shown(self._paths[at])}; give a simpler pattern (a repetition inside a "
                "repetition, such as (a+)+, tries every way to share out a path)"
            )
