"""Which images of a source without parts are held out for validation: a rule for each image, not for the whole list.

N images. Each image (or group of images) draws a number in 0..1 from a seeded hash of what it is called, and those
below the fraction validate. So an image that is added, renamed or deleted moves no other one across, on any machine.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from excite.errors import ExciteError


def draw(keys: Sequence[bytes], seed: int) -> np.ndarray:
    """A number in 0..1 for each key, a pure function of (seed, key): float64 (N,)."""
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
    """Positions for training and for validation, ascending.

    An image validates if the number of its key is below ``fraction``. Where that leaves a class without an image on one
    side, the nearest of its groups goes there, as far as no other class loses its last one by it. A class that is one
    image, or one group, is trained on; if all are, those whose number is below ``fraction`` validate after all (one, at
    least).

    Args:
        keys: what each image, or its group, is called; equal keys stay together.
        labels: class numbers (N,).
        fraction: about this share validates, 0 to 1.
        seed: of the hash.

    Raises:
        ExciteError: there are fewer than two groups, so that nothing can be held out.
    """
    labels = np.asarray(labels)
    names, group = np.unique(np.array(keys, dtype=object), return_inverse=True)
    if len(names) < 2:
        raise ExciteError(
            f"{len(labels)} images in one group cannot be split into training and validation images; add some, or give "
            "a validation folder"
        )
    number = draw(names.tolist(), seed)
    held_out = number < fraction
    members = np.unique(np.stack([labels, group]), axis=1)  # which groups have images of which class
    starts = np.searchsorted(members[0], np.unique(labels))
    of_class = np.split(members[1], starts[1:])
    counts = np.zeros((len(of_class), 2), dtype=np.int64)  # groups of each class that train, that validate
    classes_of: dict[int, list[int]] = {}
    for k, groups in enumerate(of_class):
        counts[k] = (~held_out[groups]).sum(), held_out[groups].sum()
        if len(names) < len(labels):
            for g in groups.tolist():
                classes_of.setdefault(g, []).append(k)

    def move(g: int, side: int, own: int) -> bool:
        """Let a group train (0) or validate (1), unless another class would have none on the side that it leaves."""
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


def group_keys(paths: Sequence[str], group_by: int | str) -> tuple[list[bytes], int]:
    """The group of each image, and how many images have none and so stand alone.

    Args:
        paths: relative to the data set, with "/", the class folder first.
        group_by: a number: the folder at that level below the class folder (1: the first); or a regular expression,
            whose groups (else whose whole match) name the group.

    Raises:
        ExciteError: the pattern is no regular expression, or no image has a group.
    """
    if isinstance(group_by, int):
        found = [_level(path, group_by) for path in paths]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise ExciteError(f"data.group_by={group_by} is no regular expression: {error}") from None
        found = [_match(pattern, path) for path in paths]
    alone = sum(each is None for each in found)
    if alone == len(paths):
        what = f"no folder at level {group_by} below its class" if isinstance(group_by, int) else "no match"
        raise ExciteError(f"data.group_by={group_by}: none of {alone:,} images has a group ({what} in {paths[0]!r})")
    keys = [f"\0{path}" if key is None else key for key, path in zip(found, paths, strict=True)]
    return [key.encode("utf-8", "surrogateescape") for key in keys], alone


def _level(path: str, level: int) -> str | None:
    folders = path.split("/")[1:-1]
    return "/".join(folders[:level]) if len(folders) >= level else None


def _match(pattern: re.Pattern[str], path: str) -> str | None:
    match = pattern.search(path)
    if match is None:
        return None
    return "\0".join(part or "" for part in match.groups()) if pattern.groups else match[0]
