"""A module of a foreign network with a gate after it. Notation: N images, C channels, H x W positions."""

from typing import Any

from torch import Tensor, nn

from excite.gates import Gate, create_gate
from excite.gates.registry import GateTable
from excite.ops.boundaries import NotScriptable

INNER, GATE = "inner", "gate"


class Grafted(NotScriptable):
    """``gate(inner(...))``, in place of ``inner``.

    In a ``state_dict``, the names of ``inner`` stay as they are and those of the gate are added: if ``bn3`` is wrapped,
    ``bn3.weight`` is still ``bn3.weight``, and the gate's names are ``bn3.gate.*``. Except for the gates, an ungated
    checkpoint therefore fits the grafted network, and a grafted one the ungated network. (``named_parameters`` says
    ``bn3.inner.weight``.) Attributes that the wrapper lacks are looked up in ``inner``.

    A forward hook on ``inner`` would be silently lost when a tool replaces a norm by another module
    (``SyncBatchNorm.convert_sync_batchnorm``); this wrapper is not.

    Args:
        inner: a module whose output is a map.
        spec: the gate's table, as for ``create_gate``.
        channels: C.
        size: (H, W) of the map, for gates that need it.
        channels_last: whether the map has the shape (N, H, W, C) instead of (N, C, H, W).
    """

    def __init__(
        self, inner: nn.Module, spec: GateTable, channels: int, size: tuple[int, int], channels_last: bool
    ) -> None:
        super().__init__()
        self.spec = dict(spec)
        self.channels, self.size, self.channels_last = channels, tuple(size), channels_last
        self.inner = inner
        self.gate: Gate = create_gate(spec, channels, feature_size=size)
        like = next((p for p in inner.parameters() if p.is_floating_point()), None)
        if like is not None:
            self.gate.to(device=like.device, dtype=like.dtype)
        self.gate.train(inner.training)
        self.training = inner.training

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.inner(*args, **kwargs)
        return self.gate(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.channels_last else self.gate(x)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get(INNER)
            if inner is None:
                raise
            return getattr(inner, name)

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in [k for k in state if k.startswith(f"{prefix}{INNER}.")]:
            state[prefix + key.removeprefix(f"{prefix}{INNER}.")] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.split(".")[0] != GATE:
                state_dict[f"{prefix}{INNER}.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
