"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, eq. 6) on denoised estimates.

All its forms are affine at a fixed x and sigma, so they read the same in eps, v and denoised. The paper's weight w is
`cfg = 1 + w` here; `cfg = 1` is no guidance.
"""

from torch import Tensor


def cfg(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """`D- + cfg (D+ - D-)`."""
    return negative + scale * (positive - negative)


def cfg_with_empty(positive: Tensor, negative: Tensor, empty: Tensor, scale: float, negative_scale: float) -> Tensor:
    """`D0 + cfg (D+ - D0) - negative_scale (D- - D0)`: towards the positive and away from the negative, apart.

    Composition of energies (Liu et al. 2022, arXiv:2206.01714, eq. 11), D0 the estimate of an empty prompt.
    """
    return empty + scale * (positive - empty) - negative_scale * (negative - empty)


def branch_weights(scale: float, negative_scale: float) -> tuple[float, float, float]:
    """What D+, D- and D0 weigh in `cfg_with_empty`; one that weighs 0 need not be computed (any value stands in)."""
    return scale, -negative_scale, 1.0 - scale + negative_scale
