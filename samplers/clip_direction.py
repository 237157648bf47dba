"""The directional CLIP loss: a picture changes as one text changes into another.

StyleGAN-NADA (Gal et al. 2021, arXiv:2108.00946, eq. 3), for diffusion models DiffusionCLIP (Kim et al. 2022,
arXiv:2110.02711, eq. 8).
"""

from torch import Tensor
from torch.nn.functional import normalize

GUARD = 1e-2
"""Added to the change's length in quadrature: where nothing has changed yet there is no direction."""


def change(before: Tensor, after: Tensor) -> Tensor:
    """From one embedding to the other (..., width), each on the unit sphere."""
    return normalize(after, dim=-1) - normalize(before, dim=-1)


def direction_distance(moved: Tensor, wanted: Tensor) -> Tensor:
    """`1 - cos(moved, wanted)` of changes (..., width): 0 along, 2 against, 1 where nothing has moved."""
    length = (moved.square().sum(-1) + GUARD**2).sqrt()
    return 1.0 - (moved * normalize(wanted, dim=-1)).sum(-1) / length


def check_wanted(wanted: Tensor) -> None:
    """ValueError for a change that is none."""
    if float(wanted.float().square().sum()) < 1e-8:
        raise ValueError("source_text and target_text are one to CLIP; say in target_text what is to be different")
