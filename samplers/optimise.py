"""What the searches by gradients share: Adam, and recording gradients wherever the caller is."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def differentiating() -> Generator[None, None, None]:
    """Records gradients, also where the caller is in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with its published constants, for one tensor.

    Elementwise, so that the samples of a batch do not see each other.
    """

    def __init__(self, learning_rate: float):
        self.learning_rate, self.count = learning_rate, 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def step(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The value after one update."""
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient * gradient
        mean, square = self.mean / (1.0 - 0.9**self.count), self.square / (1.0 - 0.999**self.count)
        return value - self.learning_rate * mean / (square.sqrt() + 1e-8)
