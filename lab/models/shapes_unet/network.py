"""UNet and text encoder as the host builds them, made fit to be trained."""

import comfy.clip_model
import comfy.ops
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from torch import Tensor, nn

from ..embedding_rows import ROWS
from .loader import TEXT_CONFIG, TEXT_WIDTH, UNET_CONFIG

OPERATIONS = comfy.ops.disable_weight_init
INITIALISED = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)


class Network(nn.Module):
    """UNet and text encoder, whose embedding table holds only the `words` in use."""

    def __init__(self, words: int):
        super().__init__()
        self.unet = initialised(UNetModel(**UNET_CONFIG, operations=OPERATIONS))
        _start_at_zero(self.unet)
        self.text = initialised(comfy.clip_model.CLIPTextModel(TEXT_CONFIG, None, None, OPERATIONS))
        self.text.set_input_embeddings(OPERATIONS.Embedding(words, TEXT_WIDTH))
        nn.init.normal_(self.text.get_input_embeddings().weight, std=0.3)
        nn.init.normal_(self.text.text_model.embeddings.position_embedding.weight, std=0.1)
        self.requires_grad_(True)

    def encode(self, ids: Tensor) -> Tensor:
        """Token rows (n, 77) to the UNet's context (n, 77, width)."""
        embeddings = self.text.get_input_embeddings()(ids)
        return self.text(embeds=embeddings, num_tokens=[1] * len(ids))[0]

    def trained(self) -> list[nn.Parameter]:
        """All parameters but the text projection, which the UNet does not use."""
        return [parameter for name, parameter in self.named_parameters() if "text_projection" not in name]


def make_host_trainable() -> None:
    """For this process, swap the host's attention and text layer for ones with a (fast) backward on the CPU."""
    attention.optimized_attention = _plain_attention
    comfy.clip_model.optimized_attention_for_device = lambda *_, **__: _plain_attention
    comfy.clip_model.CLIPLayer.forward = _text_layer


def initialised(net: nn.Module) -> nn.Module:
    """The host leaves weights uninitialised, for it always loads them."""
    for part in net.modules():
        for kind in INITIALISED:
            if isinstance(part, kind):
                kind.reset_parameters(part)
    return net


def checkpoint_state(weights: dict[str, Tensor], vocabulary: Tensor, vae: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint in SD1.x's layout, fp16, with the embedding rows of the vocabulary's tokens."""
    state = {}
    for key, value in weights.items():
        if key.startswith("unet."):
            state["model.diffusion_model." + key.removeprefix("unet.")] = value
        elif key.startswith("text.") and "text_projection" not in key:
            state["cond_stage_model.transformer." + key.removeprefix("text.")] = value
    state |= {"first_stage_model." + key: value for key, value in vae.items()}
    scalars = ("vae_scale", "vae_shift")
    state = {key: (value if key.endswith(scalars) else value.half()).contiguous() for key, value in state.items()}
    return {**state, f"cond_stage_model.transformer.text_model.embeddings.{ROWS}": vocabulary}


def _start_at_zero(unet: nn.Module) -> None:
    for part in unet.modules():
        if isinstance(part, ResBlock):
            nn.init.zeros_(part.out_layers[3].weight)
        if isinstance(part, attention.SpatialTransformer):
            nn.init.zeros_(part.proj_out.weight)
    nn.init.zeros_(unet.out[2].weight)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **_) -> Tensor:
    """Matrix product and softmax: faster forward and backward here than PyTorch's own on the CPU."""
    batch, _rows, width = q.shape
    q, k, v = (part.view(batch, -1, heads, width // heads).transpose(1, 2) for part in (q, k, v))
    logits = (q * (width // heads) ** -0.5) @ k.transpose(-1, -2)
    probs = (logits if mask is None else logits + mask).softmax(-1).to(v.dtype)
    return (probs @ v).transpose(1, 2).reshape(batch, -1, width)


def _text_layer(self, x: Tensor, mask: Tensor | None = None, optimized_attention=None) -> Tensor:
    """The host's layer without its in-place additions, which have no gradient."""
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))
