"""Trained networks with their class names and preprocessing: ours, or converted from another library's files."""

from excite.errors import ExciteError
from excite.runtime.environment import versions
from excite.weights.convert import convert
from excite.weights.header import Meta
from excite.weights.locate import Located
from excite.weights.meta import describe
from excite.weights.own import Checkpoint, read_own


def read_checkpoint(located: Located) -> Checkpoint:
    """Read an excite checkpoint, or convert another library's (see docs/weights.md). Raises ExciteError."""
    if located.kind == "own":
        return read_own(located.path)
    if located.kind == "grafted":
        raise ExciteError(
            f"{located.source} is another library's network with grafted gates, without class names and preprocessing; "
            "load it in Python with excite.grafting.load_grafted"
        )
    model, loaded = convert(located.source)
    return Checkpoint(located.path, model.state_dict(), {**describe(model, loaded), "versions": versions()})


def only_numbers_classes(meta: Meta) -> bool:
    """Whether a converted checkpoint has only the numbers "0", "1" ... as class names.

    Like excite, other libraries number the sorted class folders. They store no names, so data with the same number of
    classes are taken to have those classes.
    """
    own = meta["classes"]
    return "converted_from" in meta and own == [str(number) for number in range(len(own))]
