"""diffusers' RePaintScheduler in the loop of its RePaintPipeline, on latents and with captions."""

import torch
from diffusers import RePaintScheduler

from ..lab.models.shapes_unet.diffusers_bridge import LATENT_SCALE, SCHEDULER, Bridge


def scheduler(steps: int, resamples: int, jump_length: int, eta: float = 0.0) -> RePaintScheduler:
    """For the shapes checkpoint; eta 0 is the pipeline's default."""
    names = "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample"
    made = RePaintScheduler(**{name: SCHEDULER[name] for name in names}, eta=eta)
    made.set_timesteps(steps, jump_length, resamples)
    return made


def inpaint(bridge: Bridge, schedule: RePaintScheduler, cfg: float, texts: list[str], latents, masks, seed: int):
    """masks: (batch, 1, rows, columns) at the latents' size, 1 = generate."""
    contexts, generator = bridge.encode_text([*texts, *[""] * len(texts)]), torch.Generator().manual_seed(seed)
    z, last = torch.randn(latents.shape, generator=generator), schedule.timesteps[0] + 1
    for t in schedule.timesteps:
        if t < last:
            conditional, unconditional = bridge.unet(torch.cat([z, z]), t, contexts).sample.chunk(2)
            eps = unconditional + cfg * (conditional - unconditional)
            z = schedule.step(eps, t, z, latents * LATENT_SCALE, 1.0 - masks, generator).prev_sample
        else:
            z = schedule.undo_step(z, last, generator)
        last = t
    return z / LATENT_SCALE
