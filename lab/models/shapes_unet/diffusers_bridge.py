"""The shapes checkpoint without ComfyUI: diffusers' UNet and TAESD and transformers' text encoder, in the host's units.

What comes out is what the host computes from the same file (a test compares them). Nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ....samplers import guidance
from ...weights import CHECKPOINT
from ...world.vocabulary import TOKENS, token_ids
from ..embedding_rows import expanded

UNET = {
    "sample_size": 16,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4),  # for SD1.x diffusers reads this as the number of heads: 32 wide each
    "cross_attention_dim": 128,
}
TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": TOKENS,
}
SCHEDULER = {  # for diffusers' schedulers
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}
LATENT_SCALE = 0.18215  # the host's SD15 latent format
Denoise = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Bridge:
    """The parts, and what the host does around them. All in float32 on the CPU, without gradients."""

    unet: UNet2DConditionModel
    vae: AutoencoderTiny
    text_encoder: CLIPTextModel

    @cached_property
    def sigma_table(self) -> Tensor:
        """The noise level of each of the 1000 training timesteps, rising, in x = x0 + sigma n."""
        betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas**2, 0)
        return ((1 - alpha_bar) / alpha_bar).sqrt().float()

    def sigma_at(self, strength: float) -> float:
        """The noise level at a share of diffusion time, from 0 (clean) to 1 (all noise), as the host has it."""
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"strength is {strength:g}; it is a share of diffusion time, above 0 and at most 1")
        return self._between(torch.tensor(strength * (len(self.sigma_table) - 1))).item()

    def sigmas(self, steps: int) -> list[float]:
        """The host's "normal" schedule: evenly spaced timesteps from the last to the first, then 0."""
        if steps < 1:
            raise ValueError(f"steps is {steps}; at least one step is needed")
        return [*self._between(torch.linspace(len(self.sigma_table) - 1, 0, steps)).tolist(), 0.0]

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Tensor:
        """Captions to contexts (n, 77, 128); ValueError for a word the model does not know."""
        ids = torch.tensor([token_ids(caption) for caption in captions])
        return self.text_encoder(ids).last_hidden_state

    def denoiser(self, context: Tensor, negative_context: Tensor | None = None, cfg: float = 1.0) -> Denoise:
        """`denoise(x, sigma)` for x = x0 + sigma n; with a negative context and cfg other than 1, guided.

        The contexts have the batch of x. One UNet call takes both branches.
        """
        if negative_context is None or cfg == 1.0:
            return lambda x, sigma: x - sigma * self._eps(x, sigma, context)
        contexts = torch.cat([context, negative_context])

        def denoise(x: Tensor, sigma: float) -> Tensor:
            positive, negative = self._eps(torch.cat([x, x]), sigma, contexts).chunk(2)
            return x - sigma * guidance.cfg(positive, negative, cfg)

        return denoise

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in 0..1 to latents (n, 4, H/8, W/8) as the UNet sees them, about unit std."""
        return self.vae.encode(images * 2 - 1).latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`; values clamped to 0..1."""
        return ((self.vae.decode(latents / self.vae.config.scaling_factor).sample + 1) / 2).clamp(0, 1)

    def _between(self, times: Tensor) -> Tensor:
        """Noise levels at fractional timesteps, interpolated in log sigma."""
        low, high, log_table = times.floor().long(), times.ceil().long(), self.sigma_table.log()
        return torch.lerp(log_table[low], log_table[high], times.frac()).exp()

    @torch.no_grad()
    def _eps(self, x: Tensor, sigma: float, context: Tensor) -> Tensor:
        """The UNet at the trained timestep nearest in log sigma."""
        time = (self.sigma_table.log() - torch.tensor(sigma).log()).abs().argmin()
        return self.unet(x / (sigma**2 + 1) ** 0.5, time, context).sample


def load(checkpoint: Path = CHECKPOINT) -> Bridge:
    """The checkpoint's weights in diffusers' and transformers' models."""
    state = {key: value.float() for key, value in expanded(load_file(checkpoint)).items()}
    return Bridge(_unet(state), _vae(_part(state, "first_stage_model.")), _text_encoder(state))


def _unet(state: dict[str, Tensor]) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**UNET)
    unet.load_state_dict(convert_ldm_unet_checkpoint(state, unet.config))
    return unet.eval()


def _vae(first_stage: dict[str, Tensor]) -> AutoencoderTiny:
    """TAESD, with the host's factors as the scaling factor that diffusers' pipelines apply.

    diffusers names the same layers, but does not count the decoder's clamp.
    """
    vae = AutoencoderTiny(scaling_factor=LATENT_SCALE / float(first_stage["vae_scale"]))
    encoder = {f"encoder.layers.{key}": value for key, value in _part(first_stage, "taesd_encoder.").items()}
    decoder = {}
    for key, value in _part(first_stage, "taesd_decoder.").items():
        number, _, rest = key.partition(".")
        decoder[f"decoder.layers.{int(number) - 1}.{rest}"] = value
    vae.load_state_dict(encoder | decoder)
    return vae.eval()


def _text_encoder(state: dict[str, Tensor]) -> CLIPTextModel:
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
    weights = _part(state, "cond_stage_model.transformer.")
    if not next(iter(encoder.state_dict())).startswith("text_model."):  # transformers 5 dropped the prefix
        weights = _part(weights, "text_model.")
    encoder.load_state_dict(weights)
    return encoder.eval()


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key starts with the prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
