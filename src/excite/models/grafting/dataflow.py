"""A network's forward pass as a graph, to find the ends of residual branches. Notation: N images, C channels, H x W."""

import inspect
import io
import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from excite.errors import ExciteError, first_line
from excite.gates import Gate
from excite.models.grafting.wrapper import Grafted

#: Linear layers and norms: what a residual branch ends in.
LAYERS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)
_CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.Linear)
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MUL = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"}
_ATEN_LAYERS = {
    "conv1d", "conv2d", "conv3d", "convolution", "linear", "addmm",
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training",
    "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm",
}  # fmt: skip

#: Positional and keyword arguments of one call of a network.
Example = tuple[tuple[Any, ...], dict[str, Any]]

RESULT = -1


@dataclass
class Step:
    """One operation of the forward pass.

    Attributes:
        kind: "add", "layer" (convolution, dense layer, norm), "gate" (a map times something computed from a map),
            "same" (elementwise, or a permutation of one map) or "other".
        inputs: indices of the steps that feed it and depend on the image.
        shape: shape of the result, if it is a single tensor.
        module: the module whose whole result this is, or None.
        convolution: whether it is a layer other than a norm.
        label: its name in messages.
        users: indices of the steps that it feeds, and ``RESULT`` if it is part of the network's output.
    """

    kind: str
    inputs: list[int]
    shape: tuple[int, ...] | None
    module: str | None = None
    convolution: bool = False
    label: str = ""
    users: list[int] = field(default_factory=list)


@dataclass
class DataFlow:
    """The steps in order, and the tracer that found them ("torch.fx" or "torch.export")."""

    steps: list[Step]
    traced_by: str

    def __post_init__(self) -> None:
        for index, step in enumerate(self.steps):
            for source in step.inputs:
                self.steps[source].users.append(index)


def trace(model: nn.Module, example: Example) -> DataFlow:
    """Trace a call of ``model`` with torch.fx, or with torch.export if that fails.

    Raises:
        ExciteError: both fail; the message says why, and how to name places instead.
    """
    problems = []
    for name, tracer in (("torch.fx", _by_fx), ("torch.export", _by_export)):
        try:
            with evaluating(model), torch.no_grad(), _quiet():
                return DataFlow(tracer(model, example), name)
        except Exception as error:
            problems.append(f"{name}: {first_line(error).rstrip('.')[:160]}")
    raise ExciteError(
        f"the residual branches of {type(model).__name__} cannot be found, because it cannot be traced "
        f"({'; '.join(problems)}); name the modules to put gates after, such as at=['layer1.0.bn2', 'layer2.*.bn2']"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in evaluation mode; restores every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence stderr: the tracers print and log graphs and tracebacks of the errors that they then raise."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


# --- torch.fx -------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Traces into every module except known kinds: layers (with subclasses), gates, and those of torch.nn."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, Gate, Grafted)) or super().is_leaf_module(m, module_qualified_name)


def _by_fx(model: nn.Module, example: Example) -> list[Step]:
    args, kwargs = example
    call = inspect.signature(model.forward).bind(*args, **kwargs)
    given = set(call.arguments)
    call.apply_defaults()
    # Arguments left at their defaults are constants (None, False ...), so that branches on them can be traced.
    plain = {
        name for name, p in call.signature.parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    fixed = {name: value for name, value in call.arguments.items() if name in plain - given}
    graph = _Tracer().trace(model, concrete_args=fixed)
    traced = fx.GraphModule(model, graph)
    names = [node.target for node in graph.nodes if node.op == "placeholder"]
    ordered = [value for name, value in call.arguments.items() if name in plain]
    ShapeProp(traced).propagate(*ordered)
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1

    def describe(node: fx.Node) -> Step:
        shape = _shape(node.meta.get("tensor_meta"))
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            kind = "gate" if isinstance(module, Gate | Grafted) else "layer" if isinstance(module, LAYERS) else ""
            # A module that runs several times, on several maps, is not the end of a single branch.
            place = str(node.target) if calls[str(node.target)] == 1 else None
            layer = module.inner if isinstance(module, Grafted) else module
            label = f"{type(module).__name__} {node.target}"
            return Step(kind, [], shape, place, isinstance(layer, _CONVOLUTIONS), label)
        kind = "add" if node.target in _ADD else "mul" if node.target in _MUL else ""
        return Step(kind, [], shape, None, False, _owner(node))

    return _collect(graph, describe, set(names))


def _owner(node: fx.Node) -> str:
    """The innermost module that an operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    return f"{getattr(kind, '__name__', str(kind).split('.')[-1])} {path}".strip()


def _shape(meta: Any) -> tuple[int, ...] | None:
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(int(n) for n in shape)


# --- torch.export ---------------------------------------------------------------------------------------------------


def _by_export(model: nn.Module, example: Example) -> list[Step]:
    program = torch.export.export(model, *example, strict=False)
    paths = {
        node: [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()] for node in program.graph.nodes
    }

    def describe(node: fx.Node) -> Step:
        shape = _shape(node.meta.get("val"))
        name = str(node.target).removeprefix("aten.").split(".")[0] if node.op == "call_function" else ""
        if name in _ATEN_LAYERS:
            path = paths[node][-1] if paths[node] else ""
            whole = all(path not in paths[user] for user in node.users)
            return Step("layer", [], shape, path if whole and path else None, "norm" not in name, _owner(node))
        kind = "add" if name.rstrip("_") == "add" else "mul" if name.rstrip("_") == "mul" else ""
        return Step(kind, [], shape, None, False, _owner(node))

    return _collect(program.graph, describe, set(program.graph_signature.user_inputs))


# --- both -----------------------------------------------------------------------------------------------------------


def _collect(graph: fx.Graph, describe: Callable[[fx.Node], Step], inputs: set[str]) -> list[Step]:
    """Steps of the nodes that depend on the image; weights and what is computed from them alone are left out."""
    steps: list[Step] = []
    index: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            for source in node.all_input_nodes:
                if source in index:
                    steps[index[source]].users.append(RESULT)
        if node.op in ("get_attr", "output"):
            continue
        sources = [index[n] for n in node.all_input_nodes if n in index]
        if node.op == "placeholder":
            if str(node.target) not in inputs:
                continue
        elif not sources:
            continue
        step = describe(node)
        step.inputs = sources
        step.kind = step.kind if step.kind in ("add", "layer", "gate") else _kind(step, steps)
        index[node] = len(steps)
        steps.append(step)
        if _is_in_place(node):
            # Later readers of the map see its new value, under either of the two names.
            index[node.args[0]] = index[node]
    return steps


def _is_in_place(node: fx.Node) -> bool:
    """Whether it overwrites its first operand, as ``y.add_(x)`` does (torch.fx records ``y += x`` as ``y = y + x``)."""
    if node.op not in ("call_method", "call_function") or not isinstance(node.args[0] if node.args else None, fx.Node):
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "").split(".")[0]
    return name.endswith("_") and not name.endswith("__")


def _kind(step: Step, steps: list[Step]) -> str:
    shapes = [
        shape for i in step.inputs if (shape := steps[i].shape) is not None
    ]  # numbers such as x.size(0) have none
    if step.shape is None or not shapes:
        return "other"
    if (
        step.kind == "mul"
        and len(shapes) == 2
        and (shapes[0] != shapes[1] or any(_is_spread(i, steps) for i in step.inputs))
    ):
        return "gate"
    return "same" if len(shapes) == 1 and _numel(shapes[0]) == _numel(step.shape) else "other"


def _is_spread(index: int, steps: list[Step]) -> bool:
    """Whether a map is a repeated smaller one (expand, interpolate), as in gates before they multiply."""
    while steps[index].kind == "same":
        index = next(i for i in steps[index].inputs if steps[i].shape is not None)
    sources = [_numel(shape) for i in steps[index].inputs if (shape := steps[i].shape) is not None]
    shape = steps[index].shape
    if steps[index].kind != "other" or shape is None or not sources:
        return False
    return min(sources) < _numel(shape) != sum(sources)  # equal to the sum: a concatenation


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
