"""Muon: steps of convolutions in orthogonal directions; all other parameters are trained by SGD.

Notation: a filter bank (O, I, h, w) is taken as a matrix of O rows and I * h * w columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the iteration's quintic polynomial, chosen for its slope at 0 (Jordan et al., 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """A matrix with the same singular vectors, and singular values of about 1 (0.7 to 1.2 with 5 steps).

    ``steps`` iterations of Newton and Schulz (Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
    2024), in bfloat16 on a GPU, else in float32: (R, C) -> (R, C) float32.
    """
    a, b, c = _QUINTIC
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``muon=True``, whose parameters have at least two dimensions; Nesterov's SGD for the others.

    For a weight W with gradient G, momentum buffer B and learning rate lr: ``B = m B + G``; ``W = (1 - lr * decay) W -
    lr * sqrt(max(1, rows / columns)) * orthogonalized(G + m B)``.

    Args:
        groups: parameter groups; each may have its own ``lr`` and ``weight_decay``.
        lr: learning rate.
        momentum: that of SGD.
        weight_decay: decoupled for Muon, L2 for SGD.
        muon_momentum: that of Muon, m.
        ns_steps: iterations of :func:`orthogonalized`.
        normalize: before each step, give each weight of Muon's the norm sqrt(rows), instead of weight decay. For
            convolutions whose outputs are normalised, so that only the direction of their weights matters; the step is
            then not scaled by rows and columns (Jordan, ``airbench94_muon.py``).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        muon_momentum: float = 0.95,
        ns_steps: int = 5,
        normalize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "muon": False}
        super().__init__(groups, defaults)
        self.muon_momentum, self.ns_steps, self.normalize = muon_momentum, ns_steps, normalize
        if not 0 <= muon_momentum < 1:
            raise ValueError(f"muon_momentum must be at least 0 and below 1, not {muon_momentum}")
        if ns_steps < 1:
            raise ValueError(f"ns_steps must be at least 1, not {ns_steps}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step with the present gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon if group["muon"] else self._sgd)(group, parameters)
        return loss

    def _buffers(self, parameters: list[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        lr, m = group["lr"], self.muon_momentum
        for weight, buffer in zip(parameters, self._buffers(parameters), strict=True):
            assert weight.grad is not None
            buffer.mul_(m).add_(weight.grad)
            if lr == 0:  # frozen for now
                continue
            matrix = weight.grad.add(buffer, alpha=m).flatten(1)
            change = orthogonalized(matrix, self.ns_steps).view_as(weight)
            if self.normalize:
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(change, alpha=-lr)
            else:
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(change, alpha=-lr * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)

    def _sgd(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        m, buffers = group["momentum"], self._buffers(parameters)
        gradients = [parameter.grad for parameter in parameters]
        decayed: Any = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])  # type: ignore[arg-type]
        torch._foreach_mul_(buffers, m)
        torch._foreach_add_(buffers, decayed)
        torch._foreach_add_(decayed, buffers, alpha=m)
        torch._foreach_add_(parameters, decayed, alpha=-group["lr"])
