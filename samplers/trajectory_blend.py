"""DiffEdit's decoding (Couairon et al. 2023, arXiv:2210.11427, section 3.2): outside a mask, x is the inversion's."""

from collections.abc import Sequence

from torch import Tensor

from .core import Denoiser, descending, same_level
from .inversion import Inversion
from .masks import composite, keep


class Path:
    """A recorded trajectory as a path in sigma, from far above its highest level down to its lowest.

    Between two levels the path is what the deterministic step between them draws when it is taken in parts:
    `alpha D + std n` with D and n constant, in both noise laws a straight line in sigma.
    """

    def __init__(self, sigmas: Sequence[float], latents: Sequence[Tensor]):
        self.sigmas, self.latents = tuple(sigmas), tuple(latents)

    def x(self, sigma: float, like: Tensor) -> Tensor:
        """The latent at a level, exactly the recorded one at a recorded level; on the device of `like`."""
        index = next((i for i, level in enumerate(self.sigmas) if same_level(level, sigma)), None)
        if index is not None:
            return self.latents[index].to(like)
        x, direction, level = self._segment(sigma, like)
        return x + (sigma - level) * direction

    def denoised(self, sigma: float, like: Tensor) -> Tensor:
        """The estimate under which a deterministic step from a level follows the path, `x - sigma dx/dsigma`."""
        x, direction, level = self._segment(sigma, like)
        return x - level * direction

    def _segment(self, sigma: float, like: Tensor) -> tuple[Tensor, Tensor, float]:
        """(x below, dx/dsigma, sigma below) of the line through a level; at a recorded one, of the step down from it.

        Beyond the recorded levels the first or last line goes on.
        """
        below = [i for i, level in enumerate(self.sigmas) if i and sigma > level and not same_level(sigma, level)]
        above = min(below, default=len(self.sigmas) - 1) - 1
        (high, low), (x_high, x) = self.sigmas[above : above + 2], self.latents[above : above + 2]
        return x.to(like), ((x_high - x) / (high - low)).to(like), low


class TrajectoryBlend:
    """The blending of one run: what any sampler calls in place of its denoiser.

    Generates where the mask is 1. Where it is 0 each call sees the recorded latent of its level, the estimate is the
    one that leads along the path (so that multistep samplers stay on it), and `finish` puts in the recorded latent.
    """

    def __init__(self, inversion: Inversion, sigmas: Sequence[float], mask: Tensor):
        self.path, self.sigmas, self.mask = Path(inversion.sigmas, inversion.latents), descending(sigmas), mask
        check_levels(self.sigmas, inversion.sigmas)

    def start(self, like: Tensor) -> Tensor:
        """The latent to start from, inside the mask too."""
        return self.path.x(self.sigmas[0], like)

    def denoise(self, denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """`denoise(x, sigma)` of the blended x.

        A soft edge is made in the estimate: the published mix of the latents after each step, made at every step,
        would leave hardly any of the edit wherever the mask is below 1.
        """
        x = keep(x, self.path.x(sigma, x), self.mask)
        return composite(denoise(x, sigma), self.path.denoised(sigma, x), self.mask)

    def finish(self, x: Tensor) -> Tensor:
        """The sampler's result with the recorded latent, at the last sigma, where the mask is 0."""
        return keep(x, self.path.x(self.sigmas[-1], x), self.mask)


def check_levels(sigmas: Sequence[float], levels: Sequence[float]) -> None:
    """ValueError unless the sigmas are the recorded levels or a part of them without gaps."""
    start = next((i for i, level in enumerate(levels) if same_level(level, sigmas[0])), None)
    if start is None:
        raise ValueError(
            f"sampling starts at sigma {sigmas[0]:.5g}, which the inversion did not record (it runs from "
            f"{levels[0]:.5g} to {levels[-1]:.5g}); sample with the sigmas that were inverted with, or the lower "
            "part of them (Split Sigmas)"
        )
    part = levels[start : start + len(sigmas)]
    if len(part) < len(sigmas) or not all(map(same_level, part, sigmas)):
        odd = next((s for s, r in zip(sigmas, part, strict=False) if not same_level(r, s)), sigmas[-1])
        raise ValueError(
            f"the sigmas leave the inversion's at {odd:.5g} ({len(sigmas) - 1} steps from {sigmas[0]:.5g}, where the "
            f"inversion has {len(levels) - 1 - start}); sample with the sigmas that were inverted with, or a part of "
            "them without gaps (Split Sigmas)"
        )
