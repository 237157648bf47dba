"""A method made up for a test: DDIM (Song, Meng and Ermon 2021, arXiv:2010.02502) on estimates that are pulled to 0."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from .core import Denoiser, Step
from .ddim import ddim
from .noise_law import NoiseLaw


def toy(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], law: NoiseLaw, pull: float) -> Iterator[Step]:
    """Steps x (at level sigmas[0]) down the sigmas. `pull`: 0 is DDIM, at 1 all estimates are 0."""
    return ddim(lambda x, sigma: (1 - pull) * denoise(x, sigma), x, sigmas, law)
