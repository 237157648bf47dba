"""Direct Inversion (Ju et al. 2023, arXiv:2310.01506, Algorithm 1): the source's branch of an edit stays recorded.

After each step the paper subtracts by how much the source's branch has left the recorded inversion. Here the branch is
the inversion itself: at each level its latent is the recorded one, and its estimate is the one under which a step to
the next level ends at the recorded one, so that multistep samplers remember it too.
"""

from collections.abc import Sequence

from torch import Tensor

from .core import same_level
from .inversion import Inversion
from .trajectory_blend import Path


class PinnedSource:
    """The source's branch of one run at the levels `sigmas`, for latents of this shape (batch, channels, ...).

    ValueError for latents that the inversion is not of, and for a level that it did not record.
    """

    def __init__(self, inversion: Inversion, sigmas: Sequence[float], shape: Sequence[int]):
        batch, (count, *sides) = shape[0], inversion.latents[0].shape
        if tuple(sides) != tuple(shape[1:]):
            raise ValueError(
                f"inversion is of latents of {tuple(sides)} and latent_image of {tuple(shape[1:])}; connect the LATENT "
                "of the same inversion"
            )
        if count not in (1, batch):
            raise ValueError(f"inversion holds {count} latents and latent_image {batch}; give one for each")
        latents = dict(zip(inversion.sigmas, inversion.latents, strict=True))
        levels = list(dict.fromkeys(_recorded_level(sigma, inversion.sigmas) for sigma in sigmas))
        self._path = Path(levels, [latents[level] for level in levels])

    def x(self, sigma: float, like: Tensor) -> Tensor:
        """The source at a level, on the device of `like` and of its shape."""
        return self._path.x(self._level(sigma), like).expand_as(like)

    def denoised(self, sigma: float, like: Tensor) -> Tensor:
        """The estimate that takes a deterministic step from a level to the next one."""
        return self._path.denoised(self._level(sigma), like).expand_as(like)

    def _level(self, sigma: float) -> float:
        return _recorded_level(sigma, self._path.sigmas)


def _recorded_level(sigma: float, levels: Sequence[float]) -> float:
    level = min(levels, key=lambda level: abs(level - sigma))
    if not same_level(level, sigma):
        raise ValueError(
            f"sigma {sigma:.5g} is not one that the inversion recorded; sample with the sigmas it was made with, "
            "and a sampler that stays on them (euler, DDIM, heun, dpmpp_2m)"
        )
    return level
