"""How UNets (SD1.x, SD2.x, SDXL) show their attention: the layers, and the hook at each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from torch import Tensor

from ....attention.core import Attention, Term
from ....attention.layers import UNET, Grid, Site, coarse
from .families import KNOWN
from .layout import flat, flat_kernel, heads_first
from .rows import Chunk, ModelCall

Block = tuple[str, int, int]
"""As the host addresses a transformer block: the part of the network, its number there, and the transformer within."""
PARTS = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}
KINDS = {"attn1": "self", "attn2": "cross"}


def attention_sites(model) -> dict[Block, str]:
    """The transformer blocks with cross-attention and their names; ValueError for a model that has none."""
    sites = {}
    for name, module in model.diffusion_model.named_modules():
        parts = name.split(".")
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None and parts[0] in PARTS:
            number = 0 if parts[0] == "middle_block" else int(parts[1])
            if parts[-2] == "transformer_blocks":
                sites[PARTS[parts[0]], number, int(parts[-1])] = name
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no cross-attention blocks to edit; the attention nodes work on {KNOWN}. For "
            "other models use the inversion, blending and guidance nodes"
        )
    return sites


class UNetLayers:
    """The layers of a UNet; ValueError for a model that is none."""

    policy = UNET

    def __init__(self, model):
        self._sites = attention_sites(model)

    @contextmanager
    def hooked(self, call: ModelCall, network, options: dict) -> Iterator[dict]:
        """The transformer options in which each layer does what acts on it, on top of the patches that are there."""
        replaced = dict(options.get("patches_replace", {}))
        for name, kind in KINDS.items():
            acting, patches = call.acting(kind), replaced.get(name, {})
            if acting:
                replaced[name] = dict(patches)
                for block, path in self._sites.items():
                    previous = patches.get(block, patches.get(block[:2]))
                    replaced[name][block] = _Hook(acting, f"{path}.{name}", kind, previous)
        yield {**options, "patches_replace": replaced}


@dataclass(frozen=True)
class _Hook:
    """The host's replacement of one attention layer, for one model call."""

    call: ModelCall
    layer: str
    kind: str
    previous: Callable | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        heads, kernel = extra_options["n_heads"], flat_kernel(extra_options)
        whole = Attention((Term(heads_first(q, heads), heads_first(k, heads)),), heads_first(v, heads), kernel)

        def unedited(q: Tensor, k: Tensor) -> Tensor:
            if self.previous:
                return self.previous(q, k, v, extra_options)
            return flat(kernel(heads_first(q, heads), heads_first(k, heads), whole.v, None))

        grid = tuple(extra_options["activations_shape"][-2:])
        self._check(q, k, self._site(grid, k.shape[1]))
        if len(q) != self.call.rows:  # a video model's attention over time
            return unedited(q, k)
        edited = [self._edited(chunk, whole, grid) for chunk in self.call.chunks]
        if not any(edited):  # bit for bit what it would have been
            return unedited(q, k)
        pairs = zip(edited, self.call.chunks, strict=True)
        if self.kind == "cross" and self.previous:
            # a patch that adds to the attention (as IPAdapter's) keeps adding what it adds
            return unedited(q, k) + torch.cat([_change(parts, _rows(whole, chunk.rows)) for parts, chunk in pairs])
        parts = [part for parts, chunk in pairs for part in parts or [self._own(chunk, whole)]]
        if self.kind == "cross":
            return torch.cat([flat(part.out()) for part in parts])
        # edits of self-attention choose queries and keys: what was there before can take those
        terms = [part.terms[0] for part in parts]
        return unedited(torch.cat([flat(term.q) for term in terms]), torch.cat([flat(term.k) for term in terms]))

    def _edited(self, chunk: Chunk, whole: Attention, grid: Grid) -> list[Attention] | None:
        """The chunk's attention after its edits, in parts; None where nothing changes."""
        if chunk.edits is None:
            return None
        own = self._own(chunk, whole)
        return chunk.edits.apply(own, self._site(grid, own.v.shape[2]))

    def _own(self, chunk: Chunk, whole: Attention) -> Attention:
        """The chunk's attention; of a context that the host repeated the first copy has it all."""
        return _rows(whole, chunk.rows, chunk.edits.tokens if chunk.edits and self.kind == "cross" else None)

    def _site(self, grid: Grid, columns: int) -> Site:
        own = slice(0, columns)
        words, picture = (own, None) if self.kind == "cross" else (None, own)
        return Site(self.layer, words, picture, grid, self.call.latent[-2:], self.call.sigma, UNetLayers.policy)

    def _check(self, q: Tensor, k: Tensor, site: Site) -> None:
        layer, tokens = ("attn2", self.call.tokens) if self.kind == "cross" else ("attn1", site.positions)
        tiled = len(q) != len(k) and coarse(site)  # by HyperTile, where attention would be shared
        if tiled or (len(q) == self.call.rows and (q.shape[1] != site.positions or k.shape[1] != tokens)):
            raise ValueError(
                f"a patch on {layer} changes the number of positions or tokens ({q.shape[1]} and {k.shape[1]} instead "
                f"of {site.positions} and {tokens}), so that words and places cannot be told any "
                "more; remove the patch (token merging or HyperTile, for example) or the attention edit"
            )


def _rows(whole: Attention, rows: slice, tokens: int | None = None) -> Attention:
    """The attention of some rows, to the first tokens alone."""
    (term,) = whole.terms
    return Attention((Term(term.q[rows], term.k[rows, :, :tokens]),), whole.v[rows, :, :tokens], whole.kernel)


def _change(parts: list[Attention] | None, plain: Attention) -> Tensor:
    """What these parts add to the layer's own attention."""
    if parts is None:
        return torch.zeros_like(flat(plain.terms[0].q))
    return torch.cat([flat(part.out()) for part in parts]) - flat(plain.out())
