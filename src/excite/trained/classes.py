"""Check that data and network have the same classes: by name, or by order if the network has no class names."""

from collections.abc import Sequence
from pathlib import Path

from excite.data.folder import in_order, some
from excite.errors import ExciteError, nearest
from excite.trained.predictor import Predictor
from excite.weights.checkpoint import only_numbers_classes
from excite.weights.header import Meta


def check_order(meta: Meta, classes: Sequence[str], order: str | None, source: str | Path) -> None:
    """Require ``data.class_order`` for weights without class names if the two usual orders of class folders differ.

    timm sorts class folders naturally (1, 2, 10), torchvision and most others as strings (1, 10, 2).

    Args:
        meta: header of the checkpoint.
        classes: names of the class folders.
        order: the recipe's ``data.class_order``.
        source: the origin of the weights, for the message.

    Raises:
        ExciteError: the orders differ and ``order`` is None.
    """
    if not only_numbers_classes(meta) or order is not None:
        return
    if in_order(classes, "natural") == in_order(classes, "string"):
        return
    raise ExciteError(
        f"{source} has no class names, and its classes may be in the order {some(in_order(classes, 'string'))} or "
        f"{some(in_order(classes, 'natural'))}: say which with data.class_order=string (torchvision and most others) "
        "or data.class_order=natural (timm)"
    )


def match_classes(predictor: Predictor, classes: Sequence[str], source: str | Path) -> None:
    """Check by name that the network knows the classes of the data; a network without names gets those of the data.

    Args:
        predictor: the network; its ``classes`` are replaced if they are only numbers.
        classes: class names of the data, in order.
        source: the origin of the network, for the message.

    Raises:
        ExciteError: the network lacks a class, or has no names and another number of classes.
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
