"""Whether data and network mean the same classes: by their names, or by their order where a network has none."""

from collections.abc import Sequence
from pathlib import Path

from excite.data.folder import in_order, some
from excite.errors import ExciteError, nearest
from excite.trained.predictor import Predictor
from excite.weights.header import Meta


def check_order(meta: Meta, classes: Sequence[str], order: str | None, source: str | Path) -> None:
    """Refuse to guess how weights without class names number class folders, where two usual orders differ.

    timm sorts them naturally (1, 2, 10), torchvision and most others as strings (1, 10, 2).

    Args:
        meta: header of the checkpoint.
        classes: names of the class folders.
        order: what was said, see ``DataConfig.class_order``.
        source: where the weights came from, for the message.

    Raises:
        ExciteError: it matters, and nobody has said.
    """
    if not only_numbers_classes(meta) or order is not None:
        return
    if in_order(classes, "natural") == in_order(classes, "string"):
        return
    raise ExciteError(
        f"{source} has no class names, and its classes may be numbered as {some(in_order(classes, 'string'))} or as "
        f"{some(in_order(classes, 'natural'))}: say which with data.class_order=string (torchvision and most others) "
        "or data.class_order=natural (timm)"
    )


def only_numbers_classes(meta: Meta) -> bool:
    """Whether a checkpoint has "0", "1" ... for names: other systems number the sorted class folders, as we do.

    As they store no names, as many classes of data are those classes.
    """
    own = meta["classes"]
    return "converted_from" in meta and own == [str(number) for number in range(len(own))]


def match_classes(predictor: Predictor, classes: Sequence[str], source: str | Path) -> None:
    """Check that the network knows the classes of the data, by their names; one that only numbers them gets these.

    Args:
        predictor: the network; other systems' checkpoints without class names have "0", "1" ... in ``classes``.
        classes: of the data, in their order.
        source: where the network came from, for the message.

    Raises:
        ExciteError: it does not know one of them.
    """
    own = predictor.classes
    if list(classes) == own:
        return
    if only_numbers_classes(predictor.meta):
        if len(classes) != len(own):
            raise ExciteError(f"the data has {len(classes)} classes, but {source} was trained with {len(own)}")
        predictor.classes = list(classes)
        return
    unknown = [c for c in classes if c not in own]
    if unknown:
        raise ExciteError(
            f"the data has classes that {source} does not know: {', '.join(unknown[:5])}"
            + nearest(unknown[0], own, "give data with the classes that it was trained on (data.root=PATH)")
        )
