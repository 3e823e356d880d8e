"""Lazy imports: public packages load a name's module when the name is first used.

Otherwise ``excite --help`` would import PyTorch, which takes seconds.
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
        homes: name -> the module that defines it.
        call: the name that is called when the package is, as in ``excite.report(...)``.
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
    """A package that can be called like one of its functions.

    ``excite.report`` is both a package and the function that users call. A function of that name in ``excite`` would be
    replaced by the package as soon as somebody imports the latter. So the name is always the package, in whatever order
    things are imported, and the package is callable.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, vars(self)[_CALLED])(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:  # for Jupyter and help(), which show the parameters
        return inspect.signature(getattr(self, vars(self)[_CALLED]))


class CalledPackage(Generic[_P, _R]):
    """The type of such a package for type checkers: the function, plus any attribute of the package."""

    def __init__(self, function: Callable[_P, _R]) -> None:
        raise TypeError("this is for type checkers")

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        raise TypeError("this is for type checkers")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
