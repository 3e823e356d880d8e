"""The one exception that users see, and the suggestion of a near name that its messages end with."""

import difflib
from collections.abc import Iterable


class ExciteError(Exception):
    """A mistake in what the user gave (a path, a recipe, an image, a checkpoint).

    Its text is one clear sentence: what is wrong, where, and how to mend it. The command line prints it without a
    traceback and exits with status 1; from Python it is an ordinary exception.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``names``, or ``""`` where none is near."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
