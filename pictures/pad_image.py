"""Pictures with room for new rows and columns around them, which show the edge until then."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def padded(pictures: Tensor, left: int, top: int, right: int, bottom: int) -> tuple[Tensor, Tensor]:
    """Pictures (batch, h, w, channels) with so many new pixels at each side, which repeat the nearest that is there.

    And the mask (1, h, w) for all of them, 1 in what is new.
    """
    sides = left, right, top, bottom
    larger = pad(pictures.movedim(-1, 1), sides, mode="replicate").movedim(1, -1)
    return larger, pad(torch.zeros(1, *pictures.shape[1:3], device=pictures.device), sides, value=1.0)
