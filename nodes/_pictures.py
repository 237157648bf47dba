"""Pictures and masks as they come over wires, checked and brought together."""

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from ..samplers.core import check_values


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
    most = max(counts.values())
    if set(counts.values()) - {1, most}:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"the batches do not fit: {found}; give one for all, or one for each")
    return most


def mask_like(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask of any size, but of the picture's aspect, as (batch, height, width) in 0..1; ValueError for another.

    A mask of latents becomes whole blocks of pixels; in one that is larger than the picture thin lines stay.
    """
    if mask.ndim < 2 or not mask.numel():
        raise ValueError(
            f"the mask has the shape {tuple(mask.shape)}; (height, width) or (batch, height, width) is needed"
        )
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -1e-4 and high <= 1.0 + 1e-4):  # a NaN fails every comparison
        raise ValueError(f"the mask runs from {low:g} to {high:g}; it needs values from 0 (keep) to 1 (edited)")
    mask_height, mask_width = mask.shape[1:]
    if abs(mask_width * height / mask_height - width) >= max(1.0, height / mask_height, width / mask_width):
        raise ValueError(
            f"the mask is {mask_width}x{mask_height} and the picture {width}x{height}, of another aspect; make the "
            "mask from the picture"
        )
    if (mask_height, mask_width) != (height, width):
        if mask_height > height:
            mask = adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]
        else:
            mask = interpolate(mask[:, None], (height, width), mode="nearest-exact")[:, 0]
    return mask.clamp(0.0, 1.0)


def three_together(source: Tensor, edited: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The checked pictures and the mask, each as often as the largest batch. Raises ValueError."""
    check_picture("source", source)
    check_picture("edited", edited)
    check_same_size(source, edited)
    mask = mask_like(mask, *source.shape[1:3]).to(source.device)
    count = check_batches(source=len(source), edited=len(edited), mask=len(mask))
    return tuple(given.expand(count, *given.shape[1:]) for given in (source, edited.to(source), mask))
