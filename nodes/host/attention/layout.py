"""The one place where the host's layouts of queries, keys and values become heads first, and back."""

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....attention.core import Kernel


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(batch, heads, tokens, width) of the host's (batch, tokens, channels): a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def flat(x: Tensor) -> Tensor:
    """The host's (batch, tokens, channels) of (batch, heads, tokens, width): of what was flat before, a view."""
    return x.transpose(1, 2).flatten(2)


def flat_kernel(options: dict) -> Kernel:
    """The attention of a layer that asks for it in the flat form: in the other one the last bits may differ."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        heads = q.shape[1]
        out = optimized_attention(
            flat(q), flat(k), flat(v), heads, mask=bias, attn_precision=options["attn_precision"],
            transformer_options=options,
        )  # fmt: skip
        return heads_first(out, heads)

    return kernel
