"""Pictures and masks as they come over wires, checked and brought together."""

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from ..samplers.core import check_values
from ..samplers.masks import check_axes, check_mask, lies_over

CELLS = 16, 8, 4, 2, 1  # pixels to a side of a latent pixel; a decoded picture has a whole number of latent pixels


def check_picture(name: str, picture: Tensor, alpha: bool = False) -> None:
    """ValueError unless it is a batch of pictures of three finite channels, with `alpha` of four too."""
    if picture.ndim != 4 or picture.shape[-1] not in ((3, 4) if alpha else (3,)) or not picture.numel():
        raise ValueError(
            f"{name} has shape {tuple(picture.shape)}; (batch, height, width, 3) is needed"
            + ("" if alpha else "; split an alpha channel off")
        )
    if not picture.is_floating_point():
        raise ValueError(f"{name} holds {picture.dtype}; a picture is of floats from 0 to 1")
    check_values(name, picture)


def check_same_size(source: Tensor, edited: Tensor) -> None:
    """ValueError unless the two pictures have one size."""
    if source.shape[1:3] != edited.shape[1:3]:
        raise ValueError(
            f"source is {sides(source)} and edited {sides(edited)}; a VAE crops what it encodes to whole latents "
            "(multiples of 8): crop or scale the source to the edit's size"
        )


def sides(picture: Tensor) -> str:
    return f"{picture.shape[2]}x{picture.shape[1]}"


def check_batches(**counts: int) -> int:
    """The number of pictures; ValueError unless each count is that number or 1."""
    largest = max(counts.values())
    if set(counts.values()) - {1, largest}:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"the batches do not fit: {listed}; give one for all, or one for each")
    return largest


def mask_like(mask: Tensor, height: int, width: int, cell: int | None = None) -> Tensor:
    """A mask of any size, but of the picture's aspect, as (batch, height, width) in 0..1; ValueError for another.

    A mask of latents becomes whole blocks of pixels; in one that is larger than the picture thin lines stay. The
    picture may have been through a VAE, of `cell` pixels to a side of a latent pixel: a mask of what it was before is
    cut to its middle, as the host cuts pictures.
    """
    check_axes(mask, width)
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    check_mask(mask)
    cell = cell or next(size for size in CELLS if height % size == 0 and width % size == 0)
    if not lies_over(mask, height // cell, width // cell):
        raise ValueError(
            f"the mask is {mask.shape[2]}x{mask.shape[1]} and the picture {width}x{height}, of another aspect; make "
            "the mask from the picture"
        )
    down, right = mask.shape[1] - height, mask.shape[2] - width
    if 0 <= down < cell and 0 <= right < cell:
        mask = mask[:, down // 2 : down // 2 + height, right // 2 : right // 2 + width]
    elif down > 0:
        mask = adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]
    else:
        mask = interpolate(mask[:, None], (height, width), mode="nearest-exact")[:, 0]
    return mask.clamp(0.0, 1.0)


def checked_and_broadcast(source: Tensor, edited: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures and the mask, checked and broadcast to the largest batch. Raises ValueError."""
    check_picture("source", source)
    check_picture("edited", edited)
    check_same_size(source, edited)
    mask = mask_like(mask, *source.shape[1:3]).to(source.device)
    count = check_batches(source=len(source), edited=len(edited), mask=len(mask))
    source, edited, mask = (x.expand(count, *x.shape[1:]) for x in (source, edited.to(source), mask))
    return source, edited, mask
