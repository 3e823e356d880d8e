"""Copies: files with the same bytes, and pictures written anew, cropped, brightened, recompressed or mirrored.

Three steps, each for fewer pairs than the one before:

1. The low frequencies of brightness and colour (53 cosine coefficients, as in MPEG-7's colour layout) put each picture
   next to its copies; of the nearest :data:`NEIGHBOURS` of each image, also of its mirror image, those that are similar
   become candidates. Matrix products do it, in blocks.
2. Of a candidate, the crop of the one picture that fits the other best is found by Gauss-Newton steps on the 32 x 32
   grey pictures (Lucas & Kanade, IJCAI 1981), with zoom, shift, brightness and contrast free.
3. A copy agrees after that in its coarse picture, in its details, and in its colours: see :data:`AGREES`.

Shapes: N images, P pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from excite.datacheck.look import COLOUR, SIDE
from excite.progress import Progress, silent

#: Candidates for each image and its mirror image, and the least cosine similarity of their coefficients.
NEIGHBOURS, SIMILAR = 4, 0.85
#: Least correlation of two copies, once they are aligned: of the blurred pictures, and of what the blur took away; and
#: the most that their colours differ by on average (of 255), once the mean is taken away.
AGREES, DETAILS, COLOURS = 0.97, 0.5, 12.0
#: Pictures with less contrast than this (standard deviation, of 255) are only compared byte by byte: a blue sky is not
#: a copy of another.
FLAT = 4.0
_LOW, _LOW_COLOUR, _BLOCK, _PAIRS = 6, 3, 1024, 4096
#: So many similarities are held at a time.
_HELD = 1 << 25


@dataclass(frozen=True)
class Copies:
    """Pairs of copies, and the groups that they form.

    Attributes:
        pairs: int64 (P, 2), positions of images, the smaller one first.
        kinds: P of "same bytes", "near" and "mirrored".
        scores: float32 (P,), the correlation of the aligned pictures; 1 for the same bytes.
        group: int64 (N,), the smallest position among an image and all its copies.
    """

    pairs: np.ndarray
    kinds: list[str]
    scores: np.ndarray
    group: np.ndarray

    def groups(self) -> list[list[int]]:
        """The groups of two or more images, the largest first."""
        order = np.argsort(self.group, kind="stable")
        numbers = self.group[order]
        found = np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if len(order) else []
        return sorted(([int(i) for i in members] for members in found if len(members) > 1), key=lambda g: (-len(g), g))


def find_copies(rows: np.ndarray, good: np.ndarray, progress: Progress = silent) -> Copies:
    """Find the copies among images.

    Args:
        rows: see :data:`excite.datacheck.look.ROW`.
        good: positions of the readable images.
        progress: called during the work.
    """
    pairs, kinds, scores = _same_bytes(rows, good)
    # Of files with the same bytes, one stands for all.
    _, first = np.unique(rows["digest"][good], return_index=True)
    alone = np.sort(good[first])
    more, mirrored, agree = _near(rows, alone, progress)
    pairs = np.concatenate([pairs, more])
    kinds += ["mirrored" if each else "near" for each in mirrored]
    return Copies(pairs, kinds, np.concatenate([scores, agree]), _groups(len(rows), pairs))


def _same_bytes(rows: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    order = good[np.argsort(rows["digest"][good], kind="stable")]
    digests = rows["digest"][order]
    same = np.flatnonzero(digests[1:] == digests[:-1])
    first = np.searchsorted(digests, digests[same])
    pairs = np.sort(np.stack([order[first], order[same + 1]], 1), 1) if len(same) else np.zeros((0, 2), np.int64)
    return pairs.astype(np.int64), ["same bytes"] * len(pairs), np.ones(len(pairs), np.float32)


def _groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """The smallest position that each image is linked with: union and find."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in pairs.tolist():
        a, b = find(a), find(b)
        root[max(a, b)] = min(a, b)
    return np.array([find(i) for i in range(count)], np.int64)


# --- candidates -------------------------------------------------------------------------------------------------------


def _cosines(length: int, count: int) -> np.ndarray:
    order = np.arange(count)[:, None]
    return (np.cos(np.pi * (np.arange(length) + 0.5) * order / length) / length).astype(np.float32)


def layout(rows: np.ndarray) -> Tensor:
    """The low frequencies of brightness and colour, without the mean brightness: float32 (N, 53), of norm 1."""
    grey, colour = _cosines(SIDE, _LOW), _cosines(COLOUR, _LOW_COLOUR)
    out = []
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        light = np.einsum("ij,njk,lk->nil", grey, some["grey"].astype(np.float32), grey).reshape(len(some), -1)[:, 1:]
        colours = np.einsum("ij,ncjk,lk->ncil", colour, some["colour"].astype(np.float32) - 128, colour)
        out.append(np.concatenate([light, 2 * colours.reshape(len(some), -1)], 1))
    values = torch.from_numpy(np.concatenate(out)) if out else torch.zeros(0, 53)
    return F.normalize(values, eps=1e-3)


def _candidates(values: Tensor, mirror: Tensor, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of similar images, int64 (P, 2), and whether the one is to be mirrored, bool (P,)."""
    count = len(values)
    most = min(NEIGHBOURS, count - 1)
    found: list[Tensor] = []
    block = max(1, min(_BLOCK, _HELD // max(1, count)))
    for start in range(0, count if most > 0 else 0, block):
        here = torch.arange(start, min(start + block, count))
        for number, other in enumerate((values, mirror)):
            similar = values[here] @ other.T
            similar[torch.arange(len(here)), here] = -1.0  # not with itself, nor with its own mirror image
            best, at = similar.topk(most)
            row, column = torch.nonzero(best > SIMILAR, as_tuple=True)
            a, b = here[row], at[row, column]
            found.append(torch.stack([torch.minimum(a, b), torch.maximum(a, b), torch.full_like(a, number)], 1))
        progress("looking for copies", min(start + block, count), count)
    if not found:
        return np.zeros((0, 2), np.int64), np.zeros(0, bool)
    rows = torch.unique(torch.cat(found), dim=0).numpy()
    return rows[:, :2], rows[:, 2] == 1


def _near(rows: np.ndarray, alone: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grey = rows["grey"][alone]
    alone = alone[grey.reshape(len(grey), -1).astype(np.float32).std(1) >= FLAT] if len(alone) else alone
    some = rows[["grey", "colour"]][alone]
    flipped = some.copy()
    flipped["grey"], flipped["colour"] = some["grey"][:, :, ::-1], some["colour"][:, :, :, ::-1]
    pairs, mirrored = _candidates(layout(some), layout(flipped), progress)
    scores = np.zeros(len(pairs), np.float32)
    kept = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _PAIRS):
        part = slice(start, start + _PAIRS)
        a, b = pairs[part].T
        other = np.where(mirrored[part, None, None], flipped["grey"][b], some["grey"][b])
        colours = np.where(mirrored[part, None, None, None], flipped["colour"][b], some["colour"][b])
        scores[part], kept[part] = _compared(some["grey"][a], other, some["colour"][a], colours)
        progress("comparing similar images", min(start + _PAIRS, len(pairs)), len(pairs))
    # A symmetric picture is a copy and a mirrored copy at once: the better one counts.
    best: dict[tuple[int, int], int] = {}
    for k in np.flatnonzero(kept).tolist():
        pair = (int(pairs[k, 0]), int(pairs[k, 1]))
        if pair not in best or scores[k] > scores[best[pair]]:
            best[pair] = k
    chosen = np.array(sorted(best.values()), np.int64)
    return alone[pairs[chosen]].reshape(-1, 2), mirrored[chosen], scores[chosen]


# --- comparing two pictures -------------------------------------------------------------------------------------------

_KERNEL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def _blurred(x: Tensor) -> Tensor:
    """(P, S, S), a binomial filter."""
    x = F.conv2d(F.pad(x[:, None], (2, 2, 0, 0), mode="replicate"), _KERNEL[None, None, None])
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="replicate"), _KERNEL[None, None, :, None])[:, 0]


def _grid(side: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(side) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def _sampled(x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """(P, C, S, S) at a zoom and a shift for each, (P, 4) in half sides; and which samples lie inside, (P, S, S)."""
    across, down = _grid(x.shape[-1])
    across = across * (1 + place[:, 0, None, None]) + place[:, 2, None, None]
    down = down * (1 + place[:, 1, None, None]) + place[:, 3, None, None]
    inside = ((across.abs() <= 1) & (down.abs() <= 1)).float()
    grid = torch.stack([across, down], -1)
    return F.grid_sample(x, grid, align_corners=False, padding_mode="border"), inside


def _correlation(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    size = inside.sum((1, 2), keepdim=True).clamp(min=1)
    a = (a - (a * inside).sum((1, 2), keepdim=True) / size) * inside
    b = (b - (b * inside).sum((1, 2), keepdim=True) / size) * inside
    return (a * b).sum((1, 2)) / (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt().clamp(min=1e-9)


def _aligned(a: Tensor, b: Tensor, place: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Gauss-Newton steps from ``place`` for the crop of ``a`` that fits ``b``: the best place and its correlation.

    ``a`` and ``b``: blurred, float32 (P, S, S), 0 to 1; ``place``: (P, 4), see :func:`_sampled`.
    """
    count, side = len(a), a.shape[-1]
    x, y = _grid(side)
    best, score = place.clone(), torch.full((count,), -1.0)
    for step in range(steps + 1):
        moved, inside = _sampled(a[:, None], place)
        moved = moved[:, 0]
        agree = _correlation(moved, b, inside)
        better = agree > score
        best[better], score[better] = place[better], agree[better]
        if step == steps:
            break
        across = F.pad(moved[:, :, 2:] - moved[:, :, :-2], (1, 1)) * (side / 4)
        down = F.pad(moved[:, 2:] - moved[:, :-2], (0, 0, 1, 1)) * (side / 4)
        slopes = torch.stack([across * x, down * y, across, down, moved, torch.ones_like(moved)], 1)
        slopes = (slopes * inside[:, None]).reshape(count, 6, -1)
        normal = slopes @ slopes.transpose(1, 2) + 1e-4 * torch.eye(6)
        found = torch.linalg.solve(normal, slopes @ (b * inside).reshape(count, -1, 1))[:, :, 0]
        place = (place + (found[:, :4] / found[:, 4:5].clamp(min=0.3)).clamp(-0.1, 0.1)).clamp(-0.3, 0.3)
    return best, score


def _compared(
    a: np.ndarray, b: np.ndarray, a_colour: np.ndarray, b_colour: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of aligned pictures, float32 (P,), and whether they are copies, bool (P,)."""
    one, two = (torch.from_numpy(x).float() / 255 for x in (a, b))
    soft, other = _blurred(one), _blurred(two)
    # First at half the size, which is a quarter of the work and sees far; few pairs go on.
    half = [F.avg_pool2d(x[:, None], 2)[:, 0] for x in (soft, other)]
    place, score = _aligned(half[0], half[1], torch.zeros(len(a), 4), 3)
    on = torch.nonzero(score > AGREES - 0.05)[:, 0]
    kept = torch.zeros(len(a), dtype=torch.bool)
    if len(on):
        place, score[on] = _aligned(soft[on], other[on], place[on], 3)
        moved, inside = _sampled(torch.stack([one[on], soft[on]], 1), place)
        details = _correlation(moved[:, 0] - moved[:, 1], (two - other)[on], inside)
        shades, _ = _sampled(torch.from_numpy(a_colour)[on].float(), place)
        apart = shades - torch.from_numpy(b_colour)[on].float()
        apart = (apart - apart.mean((2, 3), keepdim=True)).abs().mean((1, 2, 3))
        kept[on] = (score[on] > AGREES) & (details > DETAILS) & (apart < COLOURS)
    return score.clamp(-1, 1).numpy().astype(np.float32), kept.numpy()
