"""The one SAMPLER that all methods are, and how nodes run one themselves."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from torch import Tensor

from .checks import check_given, samples_of
from .run import Run, SamplerCall


class RunSampler(comfy.samplers.Sampler):
    """A SAMPLER that is a method: the one subclass of the host's class.

    `method(run)` returns the latents. What is declared: `masks_itself`, that it keeps what is masked out, so that the
    host shall not; `sampler`, the SAMPLER that it runs, if any; `one_prompt` and
    `two_prompts`, of how many prompts its guider has to be. ValueError where both samplers mask themselves.
    """

    def __init__(
        self,
        node: str,
        method: Callable[[Run], Tensor],
        sampler: comfy.samplers.Sampler | None = None,
        masks_itself: bool = False,
        one_prompt: bool = False,
        two_prompts: bool = False,
        mask_needed: bool = True,
    ):
        self.node, self.method, self._masks, self._mask_needed = node, method, masks_itself, mask_needed
        within = sampler if isinstance(sampler, RunSampler) else None
        if masks_itself and within and within.masks_itself:
            raise ValueError(
                f"sampler is {within.node}, which keeps the masked-out part itself; "
                "connect a plain sampler such as KSamplerSelect or SteerDDIMSampler"
            )
        self.masks_itself = masks_itself or bool(within and within.masks_itself)
        self.one_prompt = one_prompt or bool(within and within.one_prompt)
        self.two_prompts = two_prompts or bool(within and within.two_prompts)

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image: Any = None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        call = SamplerCall(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        return self.method(Run(self.node, call, self._masks, self._mask_needed))

    def run_once(self, guider, sigmas: Tensor, samples: Tensor, **options) -> None:
        """Calls the method within one run of a guider on these latents, without noise, for what it leaves behind."""
        guider.sample(torch.zeros_like(samples), samples, self, sigmas, **{"seed": 0, "disable_pbar": True} | options)

    def advanced(self, noise, guider, sigmas: Tensor, latent: dict) -> dict:
        """The LATENT that SamplerCustomAdvanced gives. ValueError for what the guider cannot run on."""
        samples = samples_of(guider.model_patcher, latent)
        check_given(guider.model_patcher.model, sigmas, samples, latent.get("noise_mask"))
        run = getattr(SamplerCustomAdvanced, "execute", None) or SamplerCustomAdvanced().sample  # the host's old form
        output = run(noise, guider, self, sigmas, latent)
        return getattr(output, "args", output)[0]


def checked_sampler(node: str, sampler) -> RunSampler:
    """Another SAMPLER, after a look at what it is given, and with one at each estimate."""
    return RunSampler(node, lambda run: run.sample(sampler), sampler)
