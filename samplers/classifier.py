"""A noise-aware classifier p(y | x, sigma) on latents, for classifier guidance.

Classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233) needs a classifier that was trained on what sampling
meets: latents `x = alpha x0 + std n` of one model, at all of its noise levels. `Network` is ours and small; to train
one for another model, in any codebase: draw a labelled x0 in the model's space (after the host's `process_latent_in`),
a sigma of the model and n, and minimise the cross entropy of `log_probs`, without label smoothing, which would bias
the gradient. Labels have to cover what the model draws, in its proportions: the rest needs a label of its own.
"""

from dataclasses import dataclass
from math import hypot, log
from textwrap import shorten

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .noise_law import NoiseLaw

GROUPS, HEADS, WAVES = 8, 8, 8
MAX_LEVEL = 7.0
"""Of `log(std / alpha)`: the noise is from a thousandth to a thousand times the picture."""


class Block(nn.Module):
    """x + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)), scale and shift from the noise level (FiLM)."""

    def __init__(self, width: int, embedded: int):
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedded, 2 * width)
        for parameter in (*self.conv_out.parameters(), *self.film.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level)[..., None, None].chunk(2, 1)  # (batch, width, 1, 1)
        hidden = self.norm_out(self.conv_in(nn.functional.silu(self.norm_in(x))))
        return x + self.conv_out(nn.functional.silu((1 + scale) * hidden + shift))


class Network(nn.Module):
    """Latents (batch, channels, h, w) of any size and noise levels (batch,) to logits (batch, labels).

    Latents come with about unit variance at every level, levels as `log(std / alpha)`. A 3x3 convolution to `width`,
    one block; twice a convolution of stride 2 that doubles the width, two blocks; norm and silu; attention pooling:
    each of 8 heads weighs its eighth of the channels by a softmax over the places; a linear layer. The level enters
    every block through sin and cos of 8 frequencies from 1/4 to 4 and two linear layers.
    """

    def __init__(self, channels: int, width: int, labels: int):
        super().__init__()
        self.channels, self.width, self.labels = channels, width, labels
        embedded = 4 * width
        self.level = nn.Sequential(nn.Linear(2 * WAVES, embedded), nn.SiLU(), nn.Linear(embedded, embedded), nn.SiLU())
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width * factor, embedded) for factor in (1, 2, 2, 4, 4))
        self.downs = nn.ModuleList(nn.Conv2d(width * f, 2 * width * f, 3, stride=2, padding=1) for f in (1, 2))
        self.norm = nn.GroupNorm(GROUPS, embedded)
        self.places = nn.Conv2d(embedded, HEADS, 1)
        self.out = nn.Linear(embedded, labels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        waves = level[:, None] * torch.logspace(-2, 2, WAVES, base=2.0, dtype=x.dtype, device=x.device)
        level = self.level(torch.cat([waves.sin(), waves.cos()], 1))
        x = self.blocks[0](self.conv_in(x), level)
        x = self.blocks[2](self.blocks[1](self.downs[0](x), level), level)
        x = self.blocks[4](self.blocks[3](self.downs[1](x), level), level)
        x = nn.functional.silu(self.norm(x))
        weights = self.places(x).flatten(2).softmax(-1)  # (batch, heads, places)
        features = torch.unflatten(x.flatten(2), 1, (HEADS, -1))  # (batch, heads, width / 2, places)
        return self.out((features @ weights[..., None]).flatten(1))


@dataclass(frozen=True)
class Classifier:
    """A network and what it judges: `labels` in the order of the logits, `latent_format` the host's latent format."""

    labels: tuple[str, ...]
    law: NoiseLaw
    latent_format: str
    network: Network

    def log_probs(self, x: Tensor, sigma: float) -> Tensor:
        """log p(y | x, sigma) (batch, labels), float32, differentiable by x (batch, channels, h, w), the host's latent.

        Models with the VAE of a video model have (batch, channels, 1, h, w) for a picture. Runs where x is; the network
        itself stays where it is. ValueError for a latent of another shape.
        """
        self.check_shape(x)
        x = x[:, :, 0] if x.ndim == 5 else x
        weights = {name: value.to(x.device) for name, value in self.network.named_parameters()}
        level = torch.full((len(x),), log_level(self.law, sigma), device=x.device)
        x = x.float() * input_scale(self.law, sigma)
        return functional_call(self.network, weights, (x, level)).log_softmax(-1)

    def check_shape(self, x: Tensor) -> None:
        """ValueError for a latent of a shape that the network does not take."""
        picture = x.ndim == 4 or x.ndim == 5 and x.shape[2] == 1
        if not picture or x.shape[1] != self.network.channels or not x.numel():
            wanted = f"(batch, {self.network.channels}, height, width)"
            raise ValueError(f"the latent has the shape {tuple(x.shape)}; this classifier takes {wanted}")

    def index(self, label: str) -> int:
        """The label's place, whatever its case and spaces. ValueError with the labels there are."""
        names = [plain(name) for name in self.labels]
        if plain(label) not in names:
            known = shorten(", ".join(self.labels), 2000, placeholder=" ...")
            raise ValueError(f"the classifier has no label {label[:200]!r}; it has {known}")
        return names.index(plain(label))


def input_scale(law: NoiseLaw, sigma: float) -> float:
    """What a latent at level sigma is multiplied by to have about unit variance."""
    return 1.0 if law.flow else 1.0 / hypot(1.0, law.std(sigma))


def log_level(law: NoiseLaw, sigma: float) -> float:
    """log(std / alpha), clamped: finite without noise, and where a flow model's latent is nothing else."""
    std, alpha = law.std(sigma), law.alpha(sigma)
    if std <= 0.0 or alpha <= 0.0:
        return -MAX_LEVEL if std <= 0.0 else MAX_LEVEL
    return min(MAX_LEVEL, max(-MAX_LEVEL, log(std / alpha)))


def plain(label: str) -> str:
    """A label without its case and spare spaces."""
    return " ".join(label.casefold().split())
