"""DiffEdit's mask (Couairon et al. 2023, arXiv:2210.11427, section 3.2): where two prompts disagree about a picture."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .batch import per_sample
from .noise_law import NoiseLaw

Estimates = Callable[[Tensor, float], Sequence[Tensor]]
"""`estimates(x, sigma)`: two estimates of the clean latent, one for each prompt, from the same x."""

CLIP = 3.0
"""Where the contrast is cut off, in units of its mean, as published."""
NO_CONTRAST = 1e-5
"""The share of the estimates' size below which a contrast is rounding."""


def draws(seed: int, samples: int, like: Tensor) -> Tensor:
    """Noises (samples, channels, ...) for a batch of latents, the same for each of its pictures and on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *like.shape[1:], generator=generator)


def contrast(
    estimates: Estimates, latent: Tensor, sigma: float, law: NoiseLaw, noises: Tensor, together: int
) -> Tensor:
    """(batch, ...) without channels: how far the two estimates are apart, as a share of the estimates' size.

    The mean over draws and channels of `|difference|`, each picture by itself. Of the noise estimates, as published,
    or of the clean ones: at one level their differences are proportional. Guided estimates with the same negative
    differ by cfg times as much everywhere, which makes the same mask and costs twice: so there is no guidance here.
    `together` draws of the whole batch go into one call.
    """
    batch = latent.shape[0]
    size, difference = latent.new_zeros(batch).float(), latent.new_zeros(batch, *latent.shape[2:]).float()
    for part in torch.split(noises, together):
        clean = latent.repeat(len(part), *[1] * (latent.ndim - 1))  # draw after draw, each with the whole batch
        x = law.noised(clean, sigma, part.repeat_interleave(batch, 0).to(latent))
        source, target = (torch.unflatten(d.float(), 0, (len(part), batch)) for d in estimates(x, sigma))
        difference = difference + (target - source).abs().mean(2).sum(0)
        size = size + source.abs().flatten(2).mean(2).sum(0)  # (batch,)
    return difference / per_sample(size.clamp_min(1e-30), difference)


def mask_from(contrast: Tensor, threshold: float, within: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(mask, heat), both (batch, ...): the squared contrast over CLIP times its mean, 0 to 1, and where it is above.

    So at threshold 0.5 the mask is what has more than 1.5 times the picture's mean. Squared, unlike the published one:
    an object's contrast stands out the further the smaller it is, and the plain mean then lets in what only borders on
    it. `within` (batch, ...): where it is 0 the mask is 0, and nothing counts for the mean. A picture without
    contrast has an empty mask.
    """
    square = contrast.square()
    counts = torch.ones_like(square) if within is None else (within > 0).to(square)
    share = counts / per_sample(counts.flatten(1).sum(1).clamp_min(1.0), counts)
    mean, size = ((values * share).flatten(1).sum(1) for values in (square, contrast))
    heat = (counts * square / per_sample(CLIP * mean.clamp_min(1e-30), square)).clamp(max=1.0)
    heat = torch.where(per_sample(size > NO_CONTRAST, heat), heat, 0.0)
    return (heat > threshold).float(), heat
