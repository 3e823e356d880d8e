"""Files that are broken or odd: each a list of positions with what is odd about them, the worst first."""

import os
from collections.abc import Sequence

import numpy as np

from excite.data.formats import endings_of
from excite.datacheck.items import Items
from excite.datacheck.look import Looks

#: A shape is odd if one side is so many times the other, and so many times more than that of the typical image.
LONG, LONGER = 3.0, 2.0
#: An image is tiny if its shorter side is under this share of the size that the network sees, or of the typical one.
TINY, TINIER = 0.5, 0.25
#: An image none of whose channels has a wider range of values is constant: JPEG adds that much to one colour.
CONSTANT = 3

#: Pillow's modes that are worth a word, with it. Colours, greys, palettes and opaque pictures are ordinary.
MODES = {
    "CMYK": "CMYK, for printing",
    "LAB": "L*a*b*",
    "YCbCr": "YCbCr",
    "HSV": "HSV",
    "1": "black and white only",
    "I": "32 bits a value",
    "F": "floating point",
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), "16 bits a value"),
}
#: An unusual mode is told where no more than this share of the images has it: else it is what the data are like.
UNUSUAL = 0.5

#: Position of an image and what is odd about it.
Odd = tuple[int, str]


def broken(looks: Looks) -> list[Odd]:
    """Images that cannot be read, with the reason."""
    return list(looks.reasons.items())


def constant(looks: Looks) -> list[Odd]:
    """Images of one colour."""
    return [(int(i), "one colour all over") for i in looks.good if looks.rows["range"][i] <= CONSTANT]


def endings(items: Items, looks: Looks) -> list[Odd]:
    """Files whose extension is not one of their format's."""
    kinds, found = looks.formats(), []
    for i in looks.good.tolist():
        path, kind = items.path(i), str(kinds[i])
        own = endings_of(kind)
        ending = os.path.splitext(path or "")[1].lower()
        if own and ending and ending not in own:
            found.append((i, f"{kind} called {ending}"))
    return found


def tiny(looks: Looks, size: int) -> list[Odd]:
    """Images that have to be enlarged more than twice for the network, or are far smaller than the others."""
    short = np.minimum(looks.rows["width"], looks.rows["height"])
    good = looks.good
    if not len(good):
        return []
    typical = float(np.median(short[good]))
    # Where all are smaller than the network's input, that is how the data are: only the tiniest are told.
    least = max(TINIER * typical, TINY * size if typical >= size else 0.0)
    small = good[short[good] < least]
    order = small[np.argsort(short[small], kind="stable")]
    return [(int(i), f"{looks.rows['width'][i]} x {looks.rows['height'][i]} pixels") for i in order]


def shapes(looks: Looks) -> list[Odd]:
    """Images that are far longer than wide, or the reverse, compared with the typical image."""
    good = looks.good
    width, height = (looks.rows[side].astype(np.float64) for side in ("width", "height"))
    ratio = np.maximum(width, height) / np.maximum(1, np.minimum(width, height))
    if not len(good):
        return []
    least = max(LONG, LONGER * float(np.median(ratio[good])))
    odd = good[ratio[good] > least]
    order = odd[np.argsort(-ratio[odd], kind="stable")]
    return [(int(i), f"{looks.rows['width'][i]} x {looks.rows['height'][i]} pixels") for i in order]


def modes(looks: Looks) -> list[Odd]:
    """Images with an unusual kind of pixels, unless most have it."""
    good = looks.good
    kinds: Sequence[str] = looks.rows["mode"].tolist()
    counts = {mode: sum(kinds[i] == mode for i in good.tolist()) for mode in MODES if mode in kinds}
    told = {mode for mode, count in counts.items() if count <= UNUSUAL * len(good)}
    return [(i, MODES[kinds[i]]) for i in good.tolist() if kinds[i] in told]
