"""Decides where a module must be called, and where its work may be done without calling it; and detects tracing.

The fast forms of this package do the work of a norm, a gate or a projection without calling the module. This must not
be observable to anybody who hooks that module, replaces its ``forward`` or puts another module in its place. Each fast
form therefore asks :func:`is_plain` before it bypasses a module.
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
    """Whether bypassing ``module`` would be observable.

    It is if the module has hooks (which pruning, weight norm and spectral norm use, too), if there are global hooks,
    or if ``forward`` is replaced on the instance. A graph of ``torch.fx`` has the path without hooks.
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
    """Whether ``module`` is exactly one of ``kinds`` (a subclass may compute anything) and may be bypassed."""
    return type(module) in kinds and not is_heard(module)


def is_symbolic(x: Any) -> bool:
    """Whether ``x`` is a proxy for a tensor in a graph of ``torch.fx``, without dtype, shape or values."""
    return isinstance(x, Proxy)


def is_recorded(x: Any) -> bool:
    """Whether ``torch.jit.trace`` or ``torch.fx`` is recording ``x``. Only PyTorch's operators can be used then, since
    neither knows our kernels and derivatives."""
    return is_symbolic(x) or torch.jit.is_tracing()


def is_traced(x: Any) -> bool:
    """The same, also for ``torch.compile`` and ``torch.export``."""
    return torch.compiler.is_compiling() or is_recorded(x)


def one_node(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """``function`` as a single node in graphs of ``torch.fx``, for functions that use the shape or dtype of their first
    argument."""

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        first: Any = args[0]
        if is_symbolic(first):
            return first.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return call


class NotScriptable(nn.Module):
    """A module that ``torch.jit.script`` refuses with one sentence instead of an error from deep inside."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise ExciteError(
            f"torch.jit.script cannot compile excite's {type(self).__name__}, because TorchScript does not support all "
            "of its Python; use torch.export.export(model, (images,)), torch.jit.trace(model, images) or "
            "`excite export`"
        )
