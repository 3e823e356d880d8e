"""Check named options from users and files against the type annotations of the function that takes them."""

import numbers
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from excite.errors import LONGEST_SHOWN, ExciteError, shown, shown_text


@cache
def _adapters(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """A check for each parameter whose type can be checked."""
    found = {}
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a user's class, with names that only a type checker knows
        return {}
    for name, hint in hints.items():
        try:
            found[name] = TypeAdapter(hint, config=config)
        except (PydanticUserError, PydanticUndefinedAnnotation):
            continue
    return found


def check_types(function: Callable[..., Any], values: Mapping[str, Any], what: str) -> None:
    """Raise ExciteError if a value is not of the type that ``function`` declares for it.

    Args:
        function: the function with the annotations; a parameter without one accepts anything.
        values: name -> value. NumPy integers count as integers.
        what: the owner of the options, for the message, such as "the gate 'se'".
    """
    adapters = _adapters(function)
    for name, value in values.items():
        if (
            isinstance(value, str) and len(value) > LONGEST_SHOWN
        ):  # longer than any valid value and than a message repeats
            raise ExciteError(f"{what}: {shown_text(name)} is {shown(value)}, which it does not know")
        if name not in adapters:
            continue
        plain = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value
        try:
            adapters[name].validate_python(plain)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            message = (message[:1].lower() + message[1:]).removeprefix("input ")
            raise ExciteError(f"{what}: {shown_text(name)} is {shown(value)}, but {message}") from None


@dataclass(frozen=True)
class Says:
    """What a recipe key affects, if not the training itself. One of the key's annotations.

    Attributes:
        what: "network": the choice of network, including its gate; "neutral": speed, places, or how often something is
            logged or saved.
    """

    what: Literal["network", "neutral"]


NETWORK, NEUTRAL = Says("network"), Says("neutral")
