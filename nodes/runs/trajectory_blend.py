"""A SAMPLER round another one, whose latents outside the noise mask are those of a recorded inversion."""

import comfy.samplers

from ...samplers.inversion import Inversion
from ...samplers.trajectory_blend import TrajectoryBlend
from ..host.checks import errors_of
from ..host.law import check_inversion_fits, noise_to
from ..host.run import BlendedGuider, CheckedGuider, Run, checked_run

CLOSE = 1e-3  # of the largest value: what rounding on the wires may do to a latent


class TrajectoryBlendSampler(comfy.samplers.Sampler):
    """Another SAMPLER, which sees a guider that blends with the trajectory and no mask of its own."""

    needs_mask = True

    def __init__(self, node: str, sampler: comfy.samplers.Sampler, inversion: Inversion):
        self.node, self.sampler, self.inversion = node, sampler, inversion

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.node, model_wrap)
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, denoise_mask, needs_mask=True)
            check_inversion_fits(self.inversion, model_wrap.model_patcher)
            goes_on = continues(run, self.inversion)
            blend = TrajectoryBlend(self.inversion, run.sigmas, run.mask)
        if run.nothing_to_do(self.node):
            return self.inversion.latents[-1].to(run.known)
        model_sampling, level = model_wrap.inner_model.model_sampling, run.sigmas[0]
        if not goes_on:
            noise = noise_to(blend.start(run.known), run.known, level, run.law, self.max_denoise(model_wrap, sigmas))
        guider = BlendedGuider(model_wrap, blend)
        samples = self.sampler.sample(
            guider, sigmas.clone(), extra_args, callback, noise, latent_image, None, disable_pbar
        )
        # the inner sampler's result has been taken out of the flow law's scale; the trajectory has not
        x = blend.finish(samples * run.law.alpha(run.sigmas[-1]))
        return model_sampling.inverse_noise_scaling(sigmas[-1], x)


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
