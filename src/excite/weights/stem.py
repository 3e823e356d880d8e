"""Adapts the first convolution to another number of image channels: from colour to grey, or from grey to colour."""

from collections.abc import Mapping

from torch import Tensor

#: The first convolution of our networks.
STEMS = ("conv1.weight", "conv1.0.weight")


def fit_channels(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], stems: tuple[str, ...] = STEMS
) -> tuple[dict[str, Tensor], str]:
    """The same tensors with the stem adapted from 3 channels to 1, or from 1 to 3.

    Three channels are summed into one, which equals the response to a grey image repeated three times. One channel is
    divided by three and repeated. Both give the same response to a grey image (apart from the channels' means and
    standard deviations).

    Args:
        tensors: name -> tensor; the stem is (O, C, kh, kw).
        own: the network's own tensors.
        stems: possible names of the first convolution.

    Returns:
        The tensors, and a sentence ("" if nothing had to be done).
    """
    fitted = dict(tensors)
    for name in stems:
        theirs, mine = tensors.get(name), own.get(name)
        if theirs is None or mine is None or theirs.ndim != 4 or mine.ndim != 4:
            continue
        channels = theirs.shape[1], mine.shape[1]
        if channels not in ((3, 1), (1, 3)) or theirs.shape[::2] + theirs.shape[3:] != mine.shape[::2] + mine.shape[3:]:
            continue
        if channels == (3, 1):
            fitted[name] = theirs.sum(1, keepdim=True)
            return fitted, f"{name} is summed over its 3 channels for images of 1"
        fitted[name] = theirs.repeat(1, 3, 1, 1) / 3
        return fitted, f"{name} is repeated for images of 3 channels, divided by 3"
    return fitted, ""
