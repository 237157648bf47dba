"""What losses on the decoded estimate share: the decoding, the memory it takes, and how many pictures they have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from ..host import Run
from ..host import vae as host_vae


@dataclass(frozen=True)
class OfPictures:
    """A loss in a run that reads the decoded estimate alone. Those of one VAE decode it once."""

    vae: Any
    decode: Callable[[Tensor], Tensor]
    """Latents in model space to pictures (batch, 3, h, w), about 0..1 and not clamped."""
    judge: Callable[[Tensor], Tensor]
    """Pictures to (batch,)."""

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        return self.judge(self.decode(latent))


def of_pictures(vae, latent_format, differentiable: Callable, judge: Callable[[Tensor], Tensor]) -> OfPictures:
    """What `start` of a loss on pictures returns."""
    decoder = differentiable(vae.patcher)
    return OfPictures(vae, lambda latent: host_vae.decoded(vae, decoder, latent_format.process_out(latent)), judge)


def decoder_memory(vae, shape: tuple[int, ...]) -> float:
    """About how many bytes a decoding and the way back take at the least, where activations are computed again."""
    return 1.15 * vae.memory_used_decode(shape, vae.vae_dtype) + 2**26


def check_counts(run: Run, **pictures: Tensor | None) -> None:
    """ValueError unless there is one for all, or one for each of the run's batch."""
    for name, value in pictures.items():
        if value is not None and len(value) not in (1, len(run.known)):
            raise ValueError(
                f"the loss has {len(value)} of {name} for a batch of {len(run.known)}; give one, or one for each"
            )


def places_in(run: Run, pictures: Tensor) -> Tensor | None:
    """The run's mask (1 or batch, 1, h, w) of the size of these pictures; None without one."""
    if run.mask is None:
        return None
    places = run.mask.reshape(-1, 1, *run.mask.shape[-2:])  # of one frame
    return interpolate(places, pictures.shape[-2:], mode="bilinear")


def as_decoded(vae, run: Run, image: Tensor) -> Tensor:
    """An image (1 or batch, h, w, 3) of the decoded picture's size, cut as the host cuts what it encodes.

    ValueError for one of another size.
    """
    height, width = host_vae.decoded_size(vae, run.known)
    down, right = image.shape[1] - height, image.shape[2] - width
    cell = vae.spacial_compression_decode()
    if not (0 <= down < cell and 0 <= right < cell):
        raise ValueError(
            f"image is {image.shape[2]}x{image.shape[1]} and the picture of latent_image {width}x{height}; scale or "
            "crop the image to that size"
        )
    return image[:, down // 2 : down // 2 + height, right // 2 : right // 2 + width]
