"""The style of a picture: how often features of an early layer go together, wherever they are.

The Gram matrix of Gatys, Ecker and Bethge (2016, arXiv:1508.06576, eq. 3 and 4), of a vision transformer's tokens as
FreeDoM (Yu et al. 2023, arXiv:2303.09833, section 4.1) and MPGD (arXiv:2311.16424) guide diffusion models by it.
"""

from torch import Tensor


def gram(states: Tensor, weight: Tensor) -> Tensor:
    """`F^T F / tokens` (batch, width, width) of a layer's states (batch, tokens, width).

    `weight` (1 or batch, tokens), not negative, is how much each token counts.
    """
    weighted = states * weight[..., None]
    return weighted.mT @ states / weight.sum(1).clamp(min=1e-30)[:, None, None]


def style_distance(a: Tensor, b: Tensor) -> Tensor:
    """`|a - b|_F^2 / width^2` (batch,) of two Gram matrices (1 or batch, width, width)."""
    return (a - b).square().mean((1, 2))
