"""Transformer and text encoder as the host builds them, with forward passes that have a (fast) backward on the CPU."""

import comfy.ops
import torch
from comfy.ldm.wan.model import WanModel, sinusoidal_embedding_1d
from comfy.text_encoders.t5 import T5
from torch import Tensor, nn

from ..cpu_attention import attention, by_head, turned
from ..embedding_rows import T5_ROWS
from ..shapes_flux.network import encode
from .loader import TEXT_CONFIG, WAN_CONFIG

PREFIXES = {"wan": "model.diffusion_model.", "text": "text_encoders.umt5xxl.transformer.", "vae": "vae."}
OPERATIONS = comfy.ops.disable_weight_init
TIMES = 1000  # the network's time of noise level 1
PADDING = 0  # row of a sorted vocabulary


class Network(nn.Module):
    """Transformer and text encoder, whose embedding table holds only the `words` in use."""

    def __init__(self, words: int):
        super().__init__()
        self.wan = WanModel(**WAN_CONFIG, operations=OPERATIONS)
        self.text = T5({**TEXT_CONFIG, "vocab_size": words}, None, None, OPERATIONS)
        _initialise(self)
        self.requires_grad_(True)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The velocity, noise minus clip, of latents (n, 16, t, H, W) at times (n,) for token rows (n, tokens)."""
        return velocity(self.wan, x, t, self.encode(ids))

    def encode(self, ids: Tensor) -> Tensor:
        """Token rows (n, tokens) to the transformer's context (n, tokens, width), padding left out."""
        return encode(self.text, ids, ids != PADDING)


def checkpoint_state(weights: dict[str, Tensor], vocabulary: Tensor, vae: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint, fp16, with the embedding rows of the vocabulary's tokens and the autoencoder's file."""
    state = {PREFIXES["vae"] + key: value for key, value in vae.items()}
    for key, value in weights.items():
        part, _, name = key.partition(".")
        state[PREFIXES[part] + name] = value.half().contiguous()
    return {**state, f"{PREFIXES['text']}{T5_ROWS}": vocabulary}


def velocity(wan: WanModel, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """What `WanModel.forward` gives, with sides that its patches divide."""
    turns = wan.rope_encode(*x.shape[2:], device=x.device, dtype=torch.float32)[0, :, 0]
    turn = torch.complex(turns[..., 0, 0], turns[..., 1, 0])
    x = wan.patch_embedding(x)
    grid, x = x.shape[2:], x.flatten(2).transpose(1, 2)
    time = wan.time_embedding(sinusoidal_embedding_1d(wan.freq_dim, TIMES * t))
    modulation = wan.time_projection(time).unflatten(1, (6, wan.dim))
    text = wan.text_embedding(context)
    for block in wan.blocks:
        x = _block(block, x, modulation, text, turn)
    shift, scale = (wan.head.modulation + time[:, None]).chunk(2, 1)
    return wan.unpatchify(wan.head.head(torch.addcmul(shift, wan.head.norm(x), 1 + scale)), grid)


def _block(block, x: Tensor, modulation: Tensor, text: Tensor, turn: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + modulation).chunk(6, 1)
    read = torch.addcmul(shift1, block.norm1(x), 1 + scale1)
    q, k, v = _parts(block.self_attn, read, read)
    x = x + gate1 * block.self_attn.o(attention(turned(q, turn), turned(k, turn), v))
    x = x + block.cross_attn.o(attention(*_parts(block.cross_attn, block.norm3(x), text)))
    widen, act, narrow = block.ffn
    return x + gate2 * narrow(act(widen(torch.addcmul(shift2, block.norm2(x), 1 + scale2))))


def _parts(layer, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by head; the norms of the first two go over all heads."""
    q, k, v = layer.norm_q(layer.q(x)), layer.norm_k(layer.k(context)), layer.v(context)
    return tuple(by_head(part, layer.num_heads) for part in (q, k, v))


def _initialise(net: Network) -> None:
    """The host leaves weights uninitialised, for it always loads them; gates and the last layers start at zero."""
    for part in net.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    nn.init.xavier_uniform_(net.wan.patch_embedding.weight.flatten(1))
    for name, weight in net.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(weight)
        if name.endswith(("norm3.bias", "patch_embedding.bias", "modulation", "cross_attn.o.weight")):
            nn.init.zeros_(weight)
        if name.startswith(("wan.time_projection.", "wan.head.head.")):
            nn.init.zeros_(weight)
        if name.endswith("relative_attention_bias.weight"):
            nn.init.normal_(weight, std=2)  # or the order of words is learned late
    nn.init.normal_(net.text.shared.weight)
