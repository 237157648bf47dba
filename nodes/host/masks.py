"""Noise masks and masks of nodes: fitted to latents, and refused where a method cannot follow them."""

from torch import Tensor

from ...samplers.masks import check_axes, for_latents, lies_over
from .errors import errors_of


def fitted_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """The mask as the host has to be given it so that each latent gets its own (see `for_latents`).

    ValueError for one of another aspect or batch, which the host would stretch or repeat in silence.
    """
    height, width = latent.shape[-2:]
    if not mask.is_floating_point():
        raise ValueError(f"the mask holds {mask.dtype}; numbers from 0 to 1 are needed")
    check_axes(mask, width)
    if not lies_over(mask, height, width):
        raise ValueError(
            f"the mask is {mask.shape[-1]}x{mask.shape[-2]} but the latent is {width}x{height}, of another aspect; "
            "make the mask from the picture that was encoded"
        )
    return for_latents(mask, tuple(latent.shape))


def fitted_noise_mask(mask: Tensor | None, latent: Tensor) -> Tensor | None:
    """The same for the noise mask that came with a latent. Packs are not looked into. Raises ValueError."""
    if mask is None or latent.is_nested or mask.is_nested:
        return mask
    with errors_of("noise mask"):
        return fitted_mask(mask, latent)


def check_own_masks(guider, mask: Tensor) -> None:
    """ValueError for several clips under a guider that let the host take their masks for frames, and mix them.

    Steer's guiders do not (`fits_masks`). Under another guider all clips have one mask, and it cannot be told any more
    whether it was given for all or is the mean of several.
    """
    if mask.ndim == 5 and len(mask) > 1 and not getattr(guider, "fits_masks", False) and (mask == mask[:1]).all():
        raise ValueError(
            f"the host's guiders take the masks of {len(mask)} clips (such as pictures of Qwen-Image and Wan) for "
            "those of frames and mix them, before any sampler can see it; use SteerCFGGuider, which at its defaults is "
            "the host's CFGGuider and gives each its own, or sample one at a time"
        )


def check_masked_run(guider, mask: Tensor | None, model_options: dict) -> None:
    """ValueError for a run without a noise mask, or with one that a method which masks itself cannot follow."""
    if mask is None:
        raise ValueError(
            "latent_image has no noise mask, so there is nothing to keep; "
            "put 'Set Latent Noise Mask' between the VAE encode and the sampler"
        )
    check_own_masks(guider, mask)
    if "denoise_mask_function" in model_options:
        raise ValueError(
            "the model changes the mask at each step (Differential Diffusion), which this sampler does not follow; "
            "remove that patch, or use it with SteerDDIMSampler or a sampler of the host"
        )


def check_source(sigma: float, known: Tensor, mask: Tensor, noise: Tensor) -> None:
    """ValueError for a run without noise that keeps a part of its latent: that latent is noised, and not the source."""
    mask = mask.expand_as(known).flatten(1)
    parted = (mask > 0.0).any(1) & (mask < 1.0 - 1e-4).any(1)
    if (parted & ~noise.flatten(1).any(1)).any():
        raise ValueError(
            f"latent_image comes without noise (Disable Noise) at sigma {sigma:.4g}, so it is that of a run "
            "that was stopped there, and not the picture to keep where the mask is 0; sample all sigmas in one run, "
            "or, to go on with another model, connect the first run's denoised_output here and RandomNoise as noise"
        )
