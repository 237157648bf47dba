"""A SAMPLER round another one, whose latents outside the noise mask are those of a recorded inversion."""

from torch import Tensor

from ...samplers.inversion import Inversion
from ...samplers.trajectory_blend import TrajectoryBlend
from ..host import Run, inverted

CLOSE = 1e-3
"""Share of a latent's largest value by which rounding on the wires may change it."""


def blended_with_trajectory(run: Run, sampler, inversion: Inversion) -> Tensor:
    """Another SAMPLER's result inside the mask, where the blend answers its calls, and the recorded latents outside."""
    with run.errors():
        inverted.check_fits(inversion, run.guider.model_patcher)
        goes_on = continues(run, inversion)
        blend = TrajectoryBlend(inversion, run.sigmas, run.noise_mask)
    if run.nothing_to_do():
        return inversion.latents[-1].to(run.known)
    samples = run.sample(sampler, blend.denoise, None if goes_on else blend.start(run.known))
    return run.result(blend.finish(run.scaled(samples)))


def continues(run: Run, inversion: Inversion) -> bool:
    """False for a run that starts at the inverted picture, True for one that goes on from a latent without noise.

    ValueError for another picture than the inverted one.
    """
    source = inversion.latents[-1].to(run.known)
    if source.shape != run.known.shape:
        raise ValueError(
            f"the inversion is of latents of shape {tuple(source.shape)} and latent_image is {tuple(run.known.shape)}; "
            "connect the LATENT of the same inversion"
        )
    if (run.known - source).abs().max() <= CLOSE * source.abs().max():
        return False
    if run.start_noise.any() or not run.known.any():
        raise ValueError(
            "latent_image is not the picture that was inverted; connect the LATENT of the same inversion (or, to go on "
            "from a run that stopped early, its LATENT with Disable Noise)"
        )
    return True
