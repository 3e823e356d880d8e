"""Where a module must be called as a module, and where its work may be done for it; and what is being recorded.

The fast forms of this package do a norm's, a gate's or a projection's work without calling the module. Whoever hooks
that module, replaces its ``forward`` or puts another module in its place must not notice: each fast form asks
:func:`is_plain` before it passes a module by.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import nn
from torch.fx import Proxy
from torch.nn.modules import module as _module

from excite.errors import ExciteError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def is_heard(module: nn.Module) -> bool:
    """Whether somebody would notice that ``module`` is not called.

    By hooks of its own (pruning, weight norm and spectral norm are such, too), by hooks on all modules, or by another
    ``forward`` on the instance. A graph of ``torch.fx`` shows the path that is taken where nobody hears.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain(module: Any, *kinds: type[nn.Module]) -> bool:
    """Whether ``module`` is exactly one of ``kinds`` (no subclass, which may compute anything) and nobody hears it."""
    return type(module) in kinds and not is_heard(module)


def is_symbolic(x: Any) -> bool:
    """Whether ``x`` stands for a tensor in a graph of ``torch.fx``, and has neither type, shape nor values."""
    return isinstance(x, Proxy)


def is_recorded(x: Any) -> bool:
    """Whether ``torch.jit.trace`` or ``torch.fx`` writes down what happens to ``x``, so that PyTorch's operators alone
    will do: neither knows our kernels and derivatives."""
    return is_symbolic(x) or torch.jit.is_tracing()


def is_traced(x: Any) -> bool:
    """The same, or ``torch.compile`` or ``torch.export`` does."""
    return torch.compiler.is_compiling() or is_recorded(x)


def one_node(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """``function`` as one node of a graph of ``torch.fx``: for what asks its first argument for shape or type."""

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        first: Any = args[0]
        if is_symbolic(first):
            return first.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return call


class NotScriptable(nn.Module):
    """A module that ``torch.jit.script`` refuses in one sentence, in place of an error from deep inside."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise ExciteError(
            f"torch.jit.script cannot compile excite's {type(self).__name__}: TorchScript knows too little of Python; "
            "use torch.export.export(model, (images,)), torch.jit.trace(model, images) or `excite export`"
        )
