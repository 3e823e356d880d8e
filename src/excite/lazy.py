"""Packages that users import from give their names when they are first used: what is not used is not loaded.

Without it ``excite --help`` would import PyTorch, which takes seconds.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R", covariant=True)


def lazily(package: str, homes: Mapping[str, str], call: str | None = None) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562).

    Args:
        package: its ``__name__``.
        homes: name -> the module that has it.
        call: which of them the package is, where it is called: ``excite.report(...)``.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    if call is not None:
        module = sys.modules[package]
        module.__class__ = _CalledPackage
        vars(module)[_CALLED] = call
    return get


_CALLED = "_called"


class _CalledPackage(ModuleType):
    """A package that is one of its functions, too.

    ``excite.report`` is a package, and what a user types to have a report. A function of that name in ``excite`` would
    last until somebody imports the package: the import system then puts the package into its place. So the package is
    there from the beginning, whatever is imported in whatever order, and can be called.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, vars(self)[_CALLED])(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:  # for Jupyter and help(), which ask what may be given
        return inspect.signature(getattr(self, vars(self)[_CALLED]))


class CalledPackage(Generic[_P, _R]):
    """What a type checker takes such a package for: the function, and whatever the package has besides."""

    def __init__(self, function: Callable[_P, _R]) -> None:
        raise TypeError("this is for type checkers")

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        raise TypeError("this is for type checkers")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
