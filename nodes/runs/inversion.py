"""DDIM inversion inside a run of the host, and the NOISE that starts another run where it leads."""

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
from torch import Tensor
from tqdm.auto import tqdm

from ...samplers.core import Denoiser
from ...samplers.ddim import ddim
from ...samplers.inversion import Inversion, invert, largest_error
from ...samplers.inversion_report import holds, report
from ..host.checks import check_every_call, errors_of
from ..host.guider import guidance_of
from ..host.keyframes import Keyframes
from ..host.law import latent_format_of, noise_to
from ..host.progress import log
from ..host.run import CheckedGuider, InvertedSeed, checked_run, denoiser


class InvertedNoise:
    """A host NOISE that makes sampling start exactly at an inverted latent, from the LATENT it was given out with."""

    seed = InvertedSeed(0)

    def __init__(self, noise: Tensor):
        self._noise = noise

    def generate_noise(self, input_latent: dict) -> Tensor:
        shape = tuple(input_latent["samples"].shape)
        if shape != tuple(self._noise.shape):
            raise ValueError(
                f"SteerDDIMInversion: the inverted noise is for a latent of shape {tuple(self._noise.shape)}, not "
                f"{shape}; connect the LATENT of the same inversion"
            )
        return self._noise.clone()


def inversion_start(inversion: Inversion) -> tuple[Tensor, InvertedNoise]:
    """The source latent as the host passes it on wires, and the noise to start from `inversion.latents[0]` with it."""
    latent_format, sigma, law = latent_format_of(inversion), inversion.sigmas[0], inversion.law
    # where runs end, since a GPU divides otherwise: so a run that keeps the source gives these very numbers
    samples = latent_format.process_out(inversion.latents[-1].to(comfy.model_management.get_torch_device())).cpu()
    source = latent_format.process_in(samples) if samples.any() else samples
    return samples, InvertedNoise(noise_to(inversion.latents[0], source, sigma, law, inversion.from_top))


class InversionSampler(comfy.samplers.Sampler):
    """Walks the source up instead of sampling down. Made for one run, which leaves its `inversion` and `report`."""

    def __init__(self, node: str, refine: int, tolerance: float, check: bool):
        self.node, self.refine, self.tolerance, self.check = node, refine, tolerance, check
        self.inversion: Inversion | None = None
        self.report = ""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.node, model_wrap)
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, None, needs_mask=False)
            check_every_call(extra_args["model_options"])
            if not latent_image.any():
                raise ValueError("latent_image is empty (all zero); encode the picture to invert")
            if run.sigmas[-1] != 0.0:
                raise ValueError(
                    f"the sigmas end at {run.sigmas[-1]:g}, but a picture is inverted from 0 up; "
                    "use the whole end of the schedule (the lower half of a split, SteerSDEditSigmas)"
                )
        count = len(run.sigmas) - 1
        mib = latent_image.numel() * 4 * (count + 1) / 2**20
        log.info("%s: %d steps; the trajectory takes %.1f MiB of memory, not on the GPU", self.node, count, mib)
        keyframes = Keyframes(model_wrap, extra_args["model_options"], run.sigmas)
        denoise, total = denoiser(model_wrap, extra_args, keyframes), count * (2 if self.check else 1)
        levels, latents = [], [latent_image.float().cpu()]
        steps = invert(denoise, latent_image, run.sigmas, run.law, self.refine, self.tolerance)
        for index, level in enumerate(tqdm(steps, total=count, disable=disable_pbar)):
            latents.append(level.x.float().cpu())
            levels.append(level._replace(x=None, denoised=None))
            callback(index, level.denoised, level.x, total)
        model = model_wrap.inner_model
        self.inversion = Inversion(
            tuple(run.sigmas), tuple(reversed(latents)), run.law, type(model.latent_format).__name__,
            self.max_denoise(model_wrap, sigmas),
        )  # fmt: skip
        errors = None
        if self.check:
            back = ddim(denoise, level.x, run.sigmas, run.law)
            errors = []
            for index, step in enumerate(tqdm(back, total=count, disable=disable_pbar)):
                errors.append(largest_error(step.x, self.inversion.latents[index + 1], run.law, step.sigma))
                callback(count + index, step.denoised, step.x, total)
        steady = holds(self.inversion, levels, errors) or answers_alike(denoise, level.x, run.sigmas[0])
        keyframes.leave()
        guidance = guidance_of(model_wrap, extra_args["model_options"])
        self.report = report(self.inversion, levels, errors, self.tolerance, guidance, steady)
        return latent_image


def answers_alike(denoise: Denoiser, x: Tensor, sigma: float) -> bool:
    """Whether the same latent gets the same answer twice, up to a GPU's rounding."""
    first, second = (denoise(x, sigma) for _ in range(2))
    return bool((second - first).abs().max() <= 1e-3 * first.abs().max())
