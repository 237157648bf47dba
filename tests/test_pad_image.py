"""Room round pictures: what is there stays, what is new shows the nearest of it."""

import pytest
import torch
from steer.pictures.pad_image import padded


@pytest.mark.parametrize("left, top, right, bottom", [(0, 0, 3, 0), (2, 1, 0, 4), (5, 6, 7, 8)])
def test_each_new_pixel_is_the_nearest_that_is_there(left, top, right, bottom):
    pictures = torch.rand(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    larger, mask = padded(pictures, left, top, right, bottom)
    rows = torch.arange(-top, 4 + bottom).clamp(0, 3)
    columns = torch.arange(-left, 5 + right).clamp(0, 4)
    assert torch.equal(larger, pictures[:, rows][:, :, columns])
    new = torch.ones(1, 4 + top + bottom, 5 + left + right)
    new[:, top : top + 4, left : left + 5] = 0.0
    assert torch.equal(mask, new)
