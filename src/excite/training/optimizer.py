"""Parameter groups, optimisers and the fp16 loss scale."""

import fnmatch
import inspect
import re
from typing import Any

import torch
from torch import nn

from excite.errors import ExciteError, nearest
from excite.recipe import OptimizerConfig, TrainConfig


def freeze(model: nn.Module, patterns: list[str]) -> list[nn.Module]:
    """Stop training of the parameters whose names match one of ``patterns`` (shell style; a module's name will do).

    Returns:
        The norm layers that are frozen whole: the loop keeps them in eval mode, so that their statistics stay too.

    Raises:
        ExciteError: a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        hits = [n for n in names if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(n, f"{pattern}.*")]
        if not hits:
            modules = [name for name, _ in model.named_children()]
            raise ExciteError(f"train.freeze: no parameter matches {pattern!r}{nearest(pattern, [*modules, *names])}")
        for name in hits:
            model.get_parameter(name).requires_grad_(False)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise ExciteError(f"train.freeze: {patterns} freezes every parameter, so that nothing is left to train")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m for m in norms if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())]


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter for layer-wise rate decay: stem 0, then one more for each block, the classifier last."""
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


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters grouped by (weight decay, learning-rate scale); vectors (norms, biases) may go undecayed."""
    depths = layer_depths(model)
    last = max(depths.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if parameter.ndim > 1 or config.decay_norm_and_bias else 0.0
        scale = config.layer_decay ** (last - depths[name])
        groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": p, "weight_decay": decay, "lr_scale": scale} for (decay, scale), p in groups.items()]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD and AdamW from PyTorch (fused kernels), any other from the pytorch_optimizer library.

    Raises:
        ExciteError: no such optimiser, or an option that it does not have.
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
    else:
        factory = _library_optimizer(name)
        if "betas" in inspect.signature(factory).parameters and "betas" not in config.options:
            arguments["betas"] = tuple(config.betas)
    arguments |= config.options
    try:
        return factory(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise ExciteError(f"optimizer {config.name}: {error}") from None


def _library_optimizer(name: str) -> Any:
    import pytorch_optimizer

    names = pytorch_optimizer.get_supported_optimizers()
    if name not in names:
        raise ExciteError(f"optimizer.name: there is no {name!r}{nearest(name, ['sgd', 'adamw', *names])}")
    return pytorch_optimizer.load_optimizer(name)


class LossScaler(torch.amp.GradScaler):
    """PyTorch's gradient scaler, with a fixed scale as a choice and a count of the skipped steps.

    Args:
        device: "cuda", "cpu" ...
        config: ``loss_scale`` "dynamic" or a number, ``loss_scale_init``, ``loss_scale_growth_interval``.
        enabled: false for bf16 and fp32, where every call does nothing.
    """

    def __init__(self, device: str, config: TrainConfig, enabled: bool) -> None:
        self.fixed = None if config.loss_scale == "dynamic" else float(config.loss_scale)
        super().__init__(
            device,
            init_scale=self.fixed or config.loss_scale_init,
            growth_interval=config.loss_scale_growth_interval,
            enabled=enabled,
        )
        self.skipped = torch.zeros((), device=device)  # float32 on the device: counting must not wait for it

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """After ``step``: count the step if it was skipped, then adapt the scale (a fixed one stays)."""
        if self.is_enabled():
            found = [f for s in self._per_optimizer_states.values() for f in s["found_inf_per_device"].values()]
            self.skipped += torch.stack([f.to(self.skipped.device) for f in found]).amax().clamp(max=1)
        super().update(new_scale if self.fixed is None else self.fixed)

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state with the count of skipped steps."""
        return {**super().state_dict(), "skipped": self.skipped.item()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state."""
        state = dict(state_dict)
        self.skipped.fill_(state.pop("skipped"))
        super().load_state_dict(state)
