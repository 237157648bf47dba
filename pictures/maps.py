"""Pictures of masks and regions: a mask outlined over a picture, and a map with its phrases."""

from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from .heatmap import fitted

PIXELS = 8  # of a picture for one latent position
SIDE = 512  # pixels of a map's longer side
DIM = 0.35  # of the picture's light outside a mask
LINE = torch.tensor([1.0, 0.82, 0.1])
PAPER, INK, EDGE = 0.1, (255, 255, 255), (0, 0, 0)
# of Wong 2011 (Nature Methods 8, 441), told apart by all eyes
COLOURS = torch.tensor([
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
]) / 255.0  # fmt: skip


class Region(Protocol):
    """A place for a phrase, such as `Region` of `attention/paint_with_words.py`."""

    @property
    def mask(self) -> Tensor:
        """(height, width), or (batch, height, width) for one of each picture; 0 to 1."""
        ...

    @property
    def phrase(self) -> str: ...

    @property
    def strength(self) -> float: ...


def outlined(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures (batch, height, width, 3), dark outside their masks (batch, height, width), with a line round them."""
    inside, width = (masks > 0.5).float()[:, None], 1 + 2 * max(1, min(masks.shape[-2:]) // 256)
    line = (max_pool2d(inside, width, stride=1, padding=width // 2) - inside).movedim(1, -1)
    dimmed = pictures * (DIM + (1.0 - DIM) * inside.movedim(1, -1))
    return dimmed + line * (LINE - dimmed)


def regions_picture(regions: tuple[Region, ...], colours: Tensor = COLOURS, limit: int = 8) -> Tensor:
    """(batch, height, width, 3), 0 to 1: each region in a colour (colours, 3), its phrase written where it is.

    Of a batch of masks the first `limit`.
    """
    sides = regions[0].mask.shape[-2:]
    size = [max(1, round(side * (SIDE / max(sides)))) for side in sides]
    masks = [
        interpolate(mask.float(), size, mode="nearest-exact")[:, 0].cpu()
        for mask in (region.mask.reshape(-1, 1, *region.mask.shape[-2:])[:limit] for region in regions)
    ]
    count = max(map(len, masks))
    of_picture = ([mask[min(i, len(mask) - 1)] for mask in masks] for i in range(count))
    return torch.stack([_map(masks, regions, colours) for masks in of_picture])


def _map(masks: list[Tensor], regions: tuple[Region, ...], colours: Tensor) -> Tensor:
    sheet = torch.full((*masks[0].shape, 3), PAPER)
    for index, mask in enumerate(masks):
        sheet = sheet + mask.clamp(0.0, 1.0)[..., None] * (colours[index % len(colours)] - sheet)
    image = Image.fromarray((sheet * 255.0).round().byte().numpy())
    for mask, region in zip(masks, regions, strict=True):
        _write(image, mask, region)
    return torch.as_tensor(np.asarray(image, np.float32) / 255.0)


def _write(image: Image.Image, mask: Tensor, region: Region) -> None:
    """The phrase, at the place of the mask that is nearest to its middle; nothing where it is empty."""
    places = (mask > 0.0).nonzero().float()
    if not len(places):
        return
    row, column = map(float, places[(places - places.mean(0)).square().sum(1).argmin()])
    text = region.phrase if region.strength == 1.0 else f"{region.phrase} @ {region.strength:g}"
    text = " ".join(text.split()).encode("utf-8", "replace").decode()  # halves of characters cannot be drawn
    word, font = fitted(text, image.width, max(12, image.height // 10))
    half = font.getlength(word) / 2 + 4
    place = min(max(column, half), max(half, image.width - half)), min(max(row, 14), image.height - 14)
    ImageDraw.Draw(image).text(place, word, INK, font, anchor="mm", stroke_width=2, stroke_fill=EDGE)
