"""Losses and accuracies of the last steps, kept on the device until they are logged."""

import torch
from torch import Tensor


class Meter:
    """Collects the loss and the number of correct images of each step without waiting for the device.

    Args:
        capacity: largest number of steps between two calls of ``read``.
        device: where the losses are computed.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._values = torch.zeros(2, capacity, device=device)
        self.count = 0
        self.images = 0

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Record a step: its mean loss and number of correct images (0-d tensors), and its number of images."""
        self._values[0, self.count] = loss
        self._values[1, self.count] = correct
        self.count += 1
        self.images += images

    def read(self) -> Tensor:
        """(2, steps) on the device: losses and correct counts since the last call. Resets the meter."""
        values = self._values[:, : self.count].clone()
        self.count = self.images = 0
        return values
