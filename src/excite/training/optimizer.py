"""Parameter groups, optimisers and the fp16 loss scale."""

import fnmatch
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, TypeVar

import torch
from torch import nn

from excite.errors import ExciteError, nearest, shown
from excite.gates import Gate
from excite.models.timm_models import is_timm_model, parameter_depths
from excite.recipe import OptimizerConfig, TrainConfig
from excite.training.muon import Muon

#: Attribute of a parameter that is frozen for some epochs: the first epoch (from 0) in which it is trained.
THAWS_AT = "_excite_thaws_at"
#: Of one that is frozen later: the first epoch in which it is not trained any more.
FREEZES_AT = "_excite_freezes_at"

Value = TypeVar("Value")


def freeze(model: nn.Module, patterns: list[str], epochs: int | None = None) -> list[nn.Module]:
    """Freeze the parameters whose names match ``patterns`` (shell style; the name of a module stands for all of it).

    Patterns apply in order. One that begins with ``!`` excludes names again: ``["*", "!*.gate", "!fc"]`` freezes
    everything but the gates and the classifier.

    Args:
        model: the network.
        patterns: names or patterns.
        epochs: for how long. None: for good; the parameters get no gradient. A number: they keep their gradient, with a
            learning rate of 0 for that many epochs. The optimiser, DDP and a compiled graph are then the same at every
            step, and the optimiser's averages (momentum) are ready when the parameters are unfrozen.

    Returns:
        The norm layers that are frozen completely. The loop keeps them in eval mode, which freezes their statistics.

    Raises:
        ExciteError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: dict[str, None] = {}
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        for name in matching(model, bare, "train.freeze"):
            if bare is pattern:
                frozen[name] = None
            else:
                frozen.pop(name, None)
    if len(frozen) == len(names):
        raise ExciteError(f"train.freeze: {patterns} freezes every parameter, so nothing is left to train")
    held = {model.get_parameter(name) for name in frozen}
    for parameter in held:
        if epochs is None:
            parameter.requires_grad_(False)
        else:
            setattr(parameter, THAWS_AT, epochs)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m for m in norms if list(m.parameters()) and held.issuperset(m.parameters())]


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter for layer-wise learning-rate decay: stem 0, one more per block, the classifier last."""
    if is_timm_model(model):
        return parameter_depths(model)
    depths: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for name, _ in model.named_parameters():
        block = re.match(r"layer\d+\.\d+", name)
        if block:
            depths[name] = blocks.setdefault(block.group(), len(blocks) + 1)
        elif name.startswith("fc.") or blocks:
            depths[name] = -1
        else:
            depths[name] = 0
    last = len(blocks) + 1
    return {name: last if depth < 0 else depth for name, depth in depths.items()}


class ParameterGroup(TypedDict):
    """A parameter group of :mod:`torch.optim`, plus our learning-rate factor and the epochs in which it is trained."""

    params: list[nn.Parameter]
    weight_decay: float
    lr_scale: float
    thaws_at: int
    freezes_at: NotRequired[int]
    muon: NotRequired[bool]


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[ParameterGroup]:
    """Trainable parameters grouped by what they have in common: weight decay, learning-rate factor, the epochs in which
    they are trained, and with ``optimizer.name=muon`` by who trains them.

    Vectors (norms, biases) may be exempt from weight decay. Gates have ``gate_lr_factor`` times their layer's rate.
    Where ``lr_factors`` changes a rate, the weight decay is divided by the factor, so that a step decays weights as
    before.

    Raises:
        ExciteError: a pattern of ``lr_factors`` matches nothing.
    """
    flat = config.layer_decay == 1.0  # not every timm model reports the order of its layers
    depths = dict.fromkeys((name for name, _ in model.named_parameters()), 0) if flat else layer_depths(model)
    last = max(depths.values(), default=0)
    of_gates = {p for m in model.modules() if isinstance(m, Gate) for p in m.parameters()}
    factors = by_pattern(model, config.lr_factors, "optimizer.lr_factors")
    by_muon = _of_muon(model, of_gates) if config.name.lower() == "muon" else None
    groups: dict[tuple[float, float, int, int | None, bool | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if parameter.ndim > 1 or config.decay_norm_and_bias else 0.0
        scale = config.layer_decay ** (last - depths[name]) * (config.gate_lr_factor if parameter in of_gates else 1.0)
        begin, end = getattr(parameter, THAWS_AT, 0), getattr(parameter, FREEZES_AT, None)
        kind = None if by_muon is None else parameter in by_muon
        factor = factors.get(name, 1.0)
        key = (decay / factor, scale * factor, begin, end, kind)
        groups.setdefault(key, []).append(parameter)
    made: list[ParameterGroup] = []
    for (decay, scale, begin, end, kind), parameters in groups.items():
        made.append({"params": parameters, "weight_decay": decay, "lr_scale": scale, "thaws_at": begin})
        if end is not None:
            made[-1]["freezes_at"] = end
        if kind is not None:
            made[-1]["muon"] = kind
    return made


def by_pattern(model: nn.Module, given: Mapping[str, Value], key: str) -> dict[str, Value]:
    """Names of parameters -> what ``given`` says of them, see :func:`matching`; the last pattern that matches counts.
    Raises ExciteError if one matches nothing."""
    found: dict[str, Value] = {}
    for pattern, value in given.items():
        found |= dict.fromkeys(matching(model, pattern, key), value)
    return found


def matching(model: nn.Module, pattern: str, key: str) -> list[str]:
    """The names of a network's parameters that match a shell pattern, or belong to modules that do. Raises ExciteError
    if there are none; ``key`` is the recipe key that the pattern is from."""
    names = [name for name, _ in model.named_parameters()]
    hits = [n for n in names if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(n, f"{pattern}.*")]
    if not hits:
        modules = [name for name, _ in model.named_children()]
        raise ExciteError(f"{key}: no parameter matches {pattern!r}{nearest(pattern, [*modules, *names])}")
    return hits


def _of_muon(model: nn.Module, of_gates: set[nn.Parameter]) -> set[nn.Parameter]:
    """The parameters that Muon trains: convolutions and dense layers, but gates, the classifier, and depth-wise
    convolutions, whose rows have nothing to do with each other."""
    classifier: Any = model.get_classifier()  # type: ignore[operator]
    heads = classifier if isinstance(classifier, tuple | list) else [classifier]
    of_heads = {p for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    matrices = {p for p in model.parameters() if p.ndim in (2, 4) and p.shape[1] > 1}
    return matrices - of_gates - of_heads


def freeze_from(model: nn.Module, epochs: Mapping[str, int]) -> None:
    """Have parameters frozen after so many epochs, by name or pattern: their learning rate is 0 from then on.

    Raises:
        ExciteError: a pattern matches nothing.
    """
    for name, epoch in by_pattern(model, epochs, "train.freeze_from").items():
        setattr(model.get_parameter(name), FREEZES_AT, epoch)


def rate_of(group: Mapping[str, Any], rate: float, epoch: int) -> float:
    """The learning rate of a parameter group in an epoch (from 0), from that of the schedule."""
    frozen = epoch < group.get("thaws_at", 0) or epoch >= group.get("freezes_at", math.inf)
    return 0.0 if frozen else rate * group["lr_scale"]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser: SGD and AdamW from PyTorch (fused kernels), Muon, any other from the pytorch_optimizer library.

    Raises:
        ExciteError: the optimiser does not exist, or does not have one of the options.
    """
    groups = parameter_groups(model, config)
    arguments: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    name = config.name.lower()
    factory: Any
    if name == "sgd":
        factory = torch.optim.SGD
        arguments |= {"momentum": config.momentum, "nesterov": config.nesterov, "fused": True}
    elif name == "adamw":
        factory = torch.optim.AdamW
        arguments |= {"betas": tuple(config.betas), "fused": True}
    elif name == "muon":
        factory = Muon
        arguments |= {"momentum": config.momentum}
    else:
        factory = _library_optimizer(name)
        if "betas" in inspect.signature(factory).parameters and "betas" not in config.options:
            arguments["betas"] = tuple(config.betas)
    arguments |= config.options
    if name == "sgd" and arguments.get("dampening"):
        arguments["fused"] = False  # with dampening, the first step is not the one from zero momentum
    try:
        optimizer = factory(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise ExciteError(f"optimizer {config.name}: {error}") from None
    if name == "sgd" and arguments["momentum"] and arguments["fused"]:
        _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialise SGD's momentum with zeros. The fused kernel allocates it uninitialised at the first step, and if an
    fp16 overflow skips that step, it stays uninitialised (seen with PyTorch 2.13)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _library_optimizer(name: str) -> Any:
    import pytorch_optimizer

    names = pytorch_optimizer.get_supported_optimizers()
    if name not in names:
        raise ExciteError(f"optimizer.name: there is no {shown(name)}{nearest(name, ['sgd', 'adamw', 'muon', *names])}")
    return pytorch_optimizer.load_optimizer(name)


class LossScaler(torch.amp.GradScaler):
    """PyTorch's gradient scaler, with an optional fixed scale and a count of the skipped steps.

    Args:
        device: device type, such as "cuda" or "cpu".
        config: uses ``loss_scale`` ("dynamic" or a number), ``loss_scale_init``, ``loss_scale_growth_interval`` and
            ``loss_scale_hysteresis``: the number of overflows since the last change that halve the scale (as in
            TensorFlow's ExponentialUpdateLossScaleManager); fewer only skip their step.
        enabled: false for bf16 and fp32; every call then does nothing.
    """

    def __init__(self, device: str, config: TrainConfig, enabled: bool) -> None:
        self.fixed = None if config.loss_scale == "dynamic" else float(config.loss_scale)
        self.hysteresis = config.loss_scale_hysteresis
        super().__init__(
            device,
            init_scale=self.fixed or config.loss_scale_init,
            growth_interval=config.loss_scale_growth_interval,
            enabled=enabled,
        )
        # float32 tensors on the device, so that counting does not wait for it
        self.skipped = torch.zeros((), device=device)
        self.overflowed = torch.zeros((), device=device)  # 1 where the last step was skipped, else 0
        self.skipped_in_a_row = torch.zeros((), device=device)
        self.overflows = torch.zeros((), device=device)  # since the scale last changed

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """To be called after ``step``: count the step if it was skipped, then adapt the scale unless it is fixed."""
        if self.is_enabled():
            found = [f for s in self._per_optimizer_states.values() for f in s["found_inf_per_device"].values()]
            self.overflowed = torch.stack([f.to(self.skipped.device) for f in found]).amax().clamp(max=1)
            self.skipped += self.overflowed
            self.skipped_in_a_row = (self.skipped_in_a_row + 1) * self.overflowed
        if self.is_enabled() and self.fixed is None and new_scale is None and self.hysteresis > 1:
            self._update_with_hysteresis()
        else:
            super().update(new_scale if self.fixed is None else self.fixed)

    def _update_with_hysteresis(self) -> None:
        """Let PyTorch adapt the scale, then undo a halving that comes too early, without waiting for the device."""
        assert self._scale is not None
        before = self._scale.clone()
        super().update()
        self.overflows += self.overflowed
        early = (self.overflowed > 0) & (self.overflows < self.hysteresis)
        self._scale.copy_(torch.where(early, before, self._scale))
        self.overflows.mul_(self._scale == before)

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state with the counts of skipped steps and of overflows."""
        return {**super().state_dict(), "skipped": self.skipped.item(), "overflows": self.overflows.item()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state."""
        state = dict(state_dict)
        self.skipped.fill_(state.pop("skipped"))
        self.overflows.fill_(state.pop("overflows", 0.0))
        super().load_state_dict(state)
