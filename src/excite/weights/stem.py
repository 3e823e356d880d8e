"""A first convolution for images of another number of channels: grey ones into a network of coloured ones, and back."""

from collections.abc import Mapping

from torch import Tensor

#: The first convolution of our networks.
STEMS = ("conv1.weight", "conv1.0.weight")


def fit_channels(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], stems: tuple[str, ...] = STEMS
) -> tuple[dict[str, Tensor], str]:
    """The same tensors with a stem of 3 channels for 1, or of 1 for 3.

    Three become one by their sum: what a grey image, repeated three times, would give. One becomes three by a third
    each. Both give the same response to a grey image (but for the means and deviations of the channels).

    Args:
        tensors: name -> (O, C, kh, kw) and others.
        own: the network's own.
        stems: names that the first convolution may have.

    Returns:
        The tensors, and a sentence; "" where nothing had to be done.
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
