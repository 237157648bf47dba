"""Masks in latent space: 1 = generate, 0 = keep, anything between is a soft edge.

RePaint's paper writes 1 for the known region; everything here has the host's meaning.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


def check_mask(mask: Tensor) -> None:
    """ValueError unless the mask is finite and within 0..1. An empty one leaves its picture as it was."""
    if not mask.numel():
        raise ValueError(f"the mask has the shape {tuple(mask.shape)}, which holds nothing")
    low, high = float(mask.min()), float(mask.max())
    # bilinear resizing may leave a rounding error beyond the ends; a NaN fails every comparison
    if not (low >= -1e-4 and high <= 1.0 + 1e-4):
        raise ValueError(f"the mask runs from {low:g} to {high:g}; it needs values from 0 (keep) to 1 (generate)")


def paints(mask: Tensor) -> bool:
    """Whether the mask is not empty: it generates something."""
    return bool((mask > 0).any())


def check_axes(mask: Tensor, width: int) -> None:
    """ValueError for a mask with channels, first or last, each row or channel of which would be read as a mask.

    `width`: of the grid that the mask is for.
    """
    shape = tuple(mask.shape)
    channels_last = mask.ndim > 2 and shape[-1] == 1 < min(width, *shape[-3:-1])
    if channels_last or mask.ndim < 2 or not mask.numel() or (mask.ndim == 4 and shape[1] != 1):
        raise ValueError(
            f"the mask has the shape {shape}; (height, width) or (batch, height, width) is needed"
            + (", without a last axis of one channel" if channels_last else "")
        )


def same_picture(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two grids (height, width) can be of one picture, in any two resolutions.

    A pixel of the coarser one is a square cell of pixels of the finer one. The picture need not be a whole number of
    cells: the rest on an axis was cut off (the host's VAEs) or padded to a whole cell (others). So the two belong
    together if there is a size of the cell with which one of these holds on both axes.
    """
    (height, width), (rows, columns) = sorted((one, other), key=lambda grid: grid[0] * grid[1], reverse=True)
    cut = height * columns < width * (rows + 1) and width * rows < height * (columns + 1)
    filled = height * (columns - 1) < width * rows and width * (rows - 1) < height * columns
    return cut or filled


def lies_over(mask: Tensor, height: int, width: int) -> bool:
    """Whether a mask (..., height, width) can be of the picture of this grid.

    One that is empty, or a single value, fits any: Load Image gives 64x64 zeros for every picture without alpha.
    """
    rows, columns = mask.shape[-2:]
    return rows == columns == 1 or not paints(mask) or same_picture((rows, columns), (height, width))


def for_latents(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask as the host has to be given it so that each latent of `shape` gets its own; ValueError for other counts.

    For clips (batch, channels, frames, height, width) the host takes a batch of masks for frames, and would average
    those of several pictures: it gets (batch or 1, 1, frames or 1, height, width) instead. There may be one mask for
    all, one for each clip, one for each of its latent frames (those of all clips, or of each in turn), or one for each
    frame of the picture, of which the first latent frame holds one and each further one the same number: it is masked
    where any of them is.
    """
    if len(shape) == 3:  # sound, whose masks the host takes as they are
        return mask
    batch, channels, frames = shape[:3] if len(shape) == 5 else (shape[0], 1, 1)
    sides = tuple(mask.shape[-2:])
    count = mask.numel() // (sides[0] * sides[1])
    if mask.ndim != 5:
        readings = 1 if count in (1, frames) else count, batch, 1
        fitting = (n for n in readings if batch % n == 0 == count % n and _of_frames(count // n, frames))
        mask = mask.reshape(next(fitting, count), 1, -1, *sides)
    clips, parts = mask.shape[0], mask.shape[2]
    if batch % clips or mask.shape[1] not in (1, channels) or not _of_frames(parts, frames):
        of = f" of {frames} frames" if frames > 1 else ""
        raise ValueError(
            f"{count} masks for a batch of {batch} latents{of}; give one for all or one for each"
            + (", or one for each frame" if frames > 1 else "")
        )
    if parts not in (1, frames):
        mask = of_latent_frames(mask, frames, 2)
    return mask if len(shape) == 5 else mask[:, :, 0]


def of_latent_frames(mask: Tensor, frames: int, dim: int = 0) -> Tensor:
    """Masks of 1 + ratio (frames - 1) frames of a clip, along `dim`, as those of its latent frames.

    The first latent frame holds one frame of the clip, each other `ratio`: it is kept only if all of them are, and
    masked as much as the most masked of them.
    """
    first = mask.narrow(dim, 0, 1)
    if frames == 1:
        return first
    rest = torch.unflatten(mask.narrow(dim, 1, mask.shape[dim] - 1), dim, (frames - 1, -1))
    return torch.cat([first, rest.amax(dim + 1)], dim)


def of_clip_frames(mask: Tensor, ratio: int) -> Tensor:
    """Masks of latent frames (frames, h, w) as those of the clip's frames, each of which has its latent frame's."""
    return torch.cat([mask[:1], mask[1:].repeat_interleave(ratio, 0)])


def _of_frames(masks: int, frames: int) -> bool:
    """Whether so many masks can be one for a clip, one for each latent frame, or one for each frame of the picture."""
    return masks in (1, frames) or (masks > frames > 1 and (masks - 1) % (frames - 1) == 0)


def keep(x: Tensor, noised: Tensor, mask: Tensor) -> Tensor:
    """x with the kept region replaced by the source at the same level.

    A soft edge stays in x: mixing two independent noises there would leave less noise than the level asks for.
    The edge is made by `composite` instead.
    """
    return torch.where(mask > 0, x, noised)


def composite(denoised: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`mask denoised + (1 - mask) known`: exactly `known` where the mask is 0."""
    return torch.where(mask > 0, mask * denoised + (1.0 - mask) * known, known)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grows the mask by a (2 radius + 1)-square in latent pixels; soft values take the largest nearby (4-d or 5-d)."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:])  # the square is spatial: frames and channels are not mixed
    return max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius).reshape(mask.shape)
