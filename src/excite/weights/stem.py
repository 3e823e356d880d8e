"""Adapts the first convolution to another number of image channels: from colour to grey or to more bands, and back."""

from collections.abc import Mapping

from torch import Tensor

#: The first convolution of our networks.
STEMS = ("conv1.weight", "conv1.0.weight")


def fit_channels(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], stems: tuple[str, ...] = STEMS
) -> tuple[dict[str, Tensor], str]:
    """The same tensors with the stem adapted to the network's number of channels, as timm does.

    To one channel, all are summed, which equals the response to a grey image repeated in each. To N channels, the M
    that there are are repeated and cut off after N, and multiplied by M / N, so that the response to an image with
    equal bands stays what it was (apart from the channels' means and standard deviations).

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
        before, after = theirs.shape[1], mine.shape[1]
        if before == after or theirs.shape[::2] + theirs.shape[3:] != mine.shape[::2] + mine.shape[3:]:
            continue
        if after == 1:
            fitted[name] = theirs.sum(1, keepdim=True)
            return fitted, f"{name} is summed over its {before} channels for images of 1"
        fitted[name] = theirs.repeat(1, -(-after // before), 1, 1)[:, :after] * before / after
        by = f"divided by {after}" if before == 1 else f"multiplied by {before}/{after}"
        return fitted, f"{name} is repeated for images of {after} channels, {by}"
    return fitted, ""
