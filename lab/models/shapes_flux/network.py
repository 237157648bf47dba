"""Transformer and text encoder as the host builds them, with forward passes that have a (fast) backward on the CPU."""

import comfy.ops
import torch
from comfy.ldm.flux.layers import timestep_embedding
from comfy.ldm.flux.math import rope
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.text_encoders.t5 import T5
from torch import Tensor, nn

from ..cpu_attention import attention, by_head, flat, turned
from ..embedding_rows import T5_ROWS
from .loader import FLUX_CONFIG, TEXT_CONFIG

PREFIXES = {"flux": "model.diffusion_model.", "text": "text_encoders.t5xxl.transformer."}
OPERATIONS = comfy.ops.disable_weight_init


class Network(nn.Module):
    """Transformer and text encoder, whose embedding table holds only the `words` in use."""

    def __init__(self, words: int):
        super().__init__()
        newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
        self.flux = Flux(**FLUX_CONFIG, **newer, operations=OPERATIONS)
        self.text = T5({**TEXT_CONFIG, "vocab_size": words}, None, None, OPERATIONS)
        _initialise(self)
        self.requires_grad_(True)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The velocity, noise minus picture, of latents (n, 4, H, W) at times (n,) for token rows (n, tokens)."""
        return velocity(self.flux, x, t, self.encode(ids))

    def encode(self, ids: Tensor) -> Tensor:
        """Token rows (n, tokens) to the transformer's context (n, tokens, width)."""
        return encode(self.text, ids)


def checkpoint_state(weights: dict[str, Tensor], vocabulary: Tensor) -> dict[str, Tensor]:
    """The checkpoint in Flux's layout, fp16, with the embedding rows of the vocabulary's tokens; it has no VAE."""
    state = {}
    for key, value in weights.items():
        part, _, name = key.partition(".")
        if part == "flux":  # as Flux's files name it, which every host knows
            name = name.replace("_norm.weight", "_norm.scale")
        state[PREFIXES[part] + name] = value.half().contiguous()
    return {**state, f"{PREFIXES['text']}{T5_ROWS}": vocabulary}


def encode(text: T5, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Token rows (n, tokens) to the transformer's context (n, tokens, width), as the host's T5 and UMT5 do.

    `mask` (n, tokens) says which tokens are read, as Wan has it; the context of the others is then zero.
    """
    stack, size = text.encoder, ids.shape[1]
    x, bias = text.shared(ids), torch.tensor(0.0)
    hidden = 0.0 if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None, None]
    for block in stack.block:
        own, feed = block.layer
        part = own.SelfAttention
        if part.relative_attention_bias is not None:  # T5's first layer has one for all, UMT5's each their own
            bias = part.compute_bias(size, size, ids.device, torch.float32) + hidden
        read = own.layer_norm(x)
        q, k, v = (by_head(layer(read), part.num_heads) for layer in (part.q, part.k, part.v))
        x = x + part.o(flat((q @ k.transpose(-1, -2) + bias).softmax(-1).to(v.dtype) @ v))
        x = x + feed.DenseReluDense(feed.layer_norm(x))
    x = stack.final_layer_norm(x)
    return x if mask is None else x * mask[..., None]


def velocity(flux: Flux, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """What `Flux.forward` gives, without its additions in place and its fused rotation, which have no gradient."""
    n, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    img = x.view(n, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)
    img, txt = flux.img_in(img), flux.txt_in(context)
    vec = flux.time_in(timestep_embedding(t, 256)) + flux.vector_in(x.new_zeros(1, flux.params.vec_in_dim))
    turn = _rotations(flux, txt.shape[1], rows, columns)
    for block in flux.double_blocks:
        img, txt = _double(block, img, txt, vec, turn)
    joint, tokens = torch.cat((txt, img), 1), txt.shape[1]
    for block in flux.single_blocks:
        joint = _single(block, joint, vec, turn)
    out = flux.final_layer(joint[:, tokens:], vec)
    return out.view(n, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _double(block, img: Tensor, txt: Tensor, vec: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    (img_mod1, img_mod2), (txt_mod1, txt_mod2) = block.img_mod(vec), block.txt_mod(vec)
    streams = (txt, txt_mod1, block.txt_norm1, block.txt_attn), (img, img_mod1, block.img_norm1, block.img_attn)
    parts = []
    for stream, mod, norm, attn in streams:
        q, k, v = _by_part(attn.qkv(_modulated(norm(stream), mod)), block.num_heads)
        parts.append((*attn.norm(q, k, v), v))
    q, k, v = (torch.cat(pair, 2) for pair in zip(*parts, strict=True))
    out, tokens = _attention(q, k, v, turn), txt.shape[1]
    img = img + img_mod1.gate * block.img_attn.proj(out[:, tokens:])
    txt = txt + txt_mod1.gate * block.txt_attn.proj(out[:, :tokens])
    img = img + img_mod2.gate * block.img_mlp(_modulated(block.img_norm2(img), img_mod2))
    txt = txt + txt_mod2.gate * block.txt_mlp(_modulated(block.txt_norm2(txt), txt_mod2))
    return img, txt


def _single(block, x: Tensor, vec: Tensor, turn: Tensor) -> Tensor:
    mod, _ = block.modulation(vec)
    widths = [3 * block.hidden_size, block.mlp_hidden_dim]
    qkv, mlp = block.linear1(_modulated(block.pre_norm(x), mod)).split(widths, -1)
    q, k, v = _by_part(qkv, block.num_heads)
    out = _attention(*block.norm(q, k, v), v, turn)
    return x + mod.gate * block.linear2(torch.cat((out, block.mlp_act(mlp)), 2))


def _attention(q: Tensor, k: Tensor, v: Tensor, turn: Tensor) -> Tensor:
    return attention(turned(q, turn), turned(k, turn), v)


def _rotations(flux: Flux, tokens: int, rows: int, columns: int) -> Tensor:
    """Of the text at the origin, then of the picture by row and column: complex (tokens + rows * columns, pairs)."""
    params = flux.params
    places = torch.zeros(1, tokens + rows * columns, 3)
    places[0, tokens:, 1] = torch.arange(rows).repeat_interleave(columns)
    places[0, tokens:, 2] = torch.arange(columns).repeat(rows)
    turns = [rope(places[..., axis], size, params.theta) for axis, size in enumerate(params.axes_dim)]
    whole = torch.cat(turns, 2)[0]
    return torch.complex(whole[..., 0, 0], whole[..., 1, 0])


def _modulated(x: Tensor, mod) -> Tensor:
    return torch.addcmul(mod.shift, x, 1 + mod.scale)


def _by_part(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    return qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _initialise(net: Network) -> None:
    """The host leaves weights uninitialised, for it always loads them; gates and the last layer start at zero."""
    for part in net.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, weight in net.named_parameters():
        if name.endswith(("norm.weight", "norm.scale", "layer_norm.weight")):
            nn.init.ones_(weight)
        if "_mod.lin." in name or ".modulation.lin." in name or "final_layer." in name:
            nn.init.zeros_(weight)
    nn.init.normal_(net.text.shared.weight)
    # as large as in trained T5s: from a small one the order of words is hardly learned
    nn.init.normal_(net.text.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=2.0)
