"""Options that people and files give by name, against what the function that takes them says of their types."""

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
    """A check for every parameter with a type that can be checked."""
    found = {}
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # somebody's own class, with names that are only known to a type checker
        return {}
    for name, hint in hints.items():
        try:
            found[name] = TypeAdapter(hint, config=config)
        except (PydanticUserError, PydanticUndefinedAnnotation):
            continue
    return found


def check_types(function: Callable[..., Any], values: Mapping[str, Any], what: str) -> None:
    """Raise ExciteError where a value is not of the type that ``function`` declares for it.

    Args:
        function: its annotations count; parameters without one take anything.
        values: name -> value. Integers of NumPy are integers.
        what: whose options they are, for the message, such as "the gate 'se'".
    """
    adapters = _adapters(function)
    for name, value in values.items():
        if isinstance(value, str) and len(value) > LONGEST_SHOWN:  # longer than any, and than a message repeats
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
    """What a key of a recipe has a say in, where that is not what is learned. Stands among the key's annotations.

    Attributes:
        what: "network": which network it is, its gate among it; "neutral": how fast, where or how often something is
            written down.
    """

    what: Literal["network", "neutral"]


NETWORK, NEUTRAL = Says("network"), Says("neutral")
