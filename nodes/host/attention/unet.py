"""How UNets (SD1.x, SD2.x, SDXL) show their attention: the blocks, and the hook at each layer."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from torch import Tensor

from ....attention.core import Attention, Site, Term
from ....attention.prompt_to_prompt import coarse
from .edits import EDITS, SITES, Edits

PARTS = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}


def attention_sites(model) -> tuple[tuple[str, int, int], ...]:
    """The transformer blocks with cross-attention, as the host addresses them; ValueError for a model that has none."""
    sites = []
    for name, module in model.diffusion_model.named_modules():
        parts = name.split(".")
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None and parts[0] in PARTS:
            number = 0 if parts[0] == "middle_block" else int(parts[1])
            if parts[-2] == "transformer_blocks":
                sites.append((PARTS[parts[0]], number, int(parts[-1])))
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no cross-attention blocks to edit; the attention nodes work on UNets (SD1.x, "
            "SD2.x, SDXL). For other models use the inversion, blending and guidance nodes"
        )
    return tuple(sites)


def with_hooks(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    edits, uuids = transformer_options.get(EDITS, {}), transformer_options["uuids"]
    if any(uuid in edits for uuid in uuids):
        sigma = float(transformer_options["sigmas"].max())
        size = x.shape[0] // len(uuids)
        chunks = [(slice(i * size, (i + 1) * size), edits.get(uuid)) for i, uuid in enumerate(uuids)]
        replaced = dict(transformer_options.get("patches_replace", {}))
        for layer, cross in (("attn1", False), ("attn2", True)):
            acting = [
                (rows, edit and Edits(tuple(f for f in edit.transforms if f.acts(cross, sigma)), edit.tokens))
                for rows, edit in chunks
            ]
            if any(edit and edit.transforms for _, edit in acting):
                given = replaced.get(layer, {})
                replaced[layer] = dict(given)
                for block in transformer_options[SITES]:
                    site = partial(Site, block, cross, latent=tuple(x.shape[-2:]), sigma=sigma)
                    hook = _Hook(acting, site, given.get(block, given.get(block[:2])), c_crossattn.shape[1], x.shape[0])
                    replaced[layer][block] = hook
        transformer_options = {**transformer_options, "patches_replace": replaced}
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


class _Hook(NamedTuple):
    """The host's replacement of one attention layer, for one model call."""

    chunks: list[tuple[slice, Edits | None]]
    site: Callable[..., Site]
    previous: Callable | None
    context: int
    rows: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        def kernel(q, k, v, bias=None):
            return optimized_attention(
                q, k, v, extra_options["n_heads"], mask=bias, attn_precision=extra_options["attn_precision"],
                transformer_options=extra_options,
            )  # fmt: skip

        site = self.site(grid=tuple(extra_options["activations_shape"][-2:]))
        self._check(q, k, site)
        if q.shape[0] != self.rows:  # a video model's attention over time
            return self.previous(q, k, v, extra_options) if self.previous else kernel(q, k, v)
        made = [self._part(rows, edits, q, k, v, kernel, extra_options["n_heads"], site) for rows, edits in self.chunks]
        if not any(changed for _, changed in made):  # bit for bit what it would have been
            return self.previous(q, k, v, extra_options) if self.previous else kernel(q, k, v)
        parts = [part for part, _ in made]
        if not site.cross:
            # edits of self-attention choose queries and keys: what was there before can take those
            q, k = (torch.cat([getattr(part.terms[0], name) for chunk in parts for part in chunk]) for name in "qk")
            return self.previous(q, k, v, extra_options) if self.previous else kernel(q, k, v)
        if self.previous is None:
            return torch.cat([part.out() for chunk in parts for part in chunk])
        # a patch that adds to the attention (as IPAdapter's) keeps adding what it adds
        out = self.previous(q, k, v, extra_options)
        changes = [
            torch.cat([part.out() for part in chunk]) - kernel(q[rows], k[rows], v[rows])
            if changed
            else torch.zeros_like(out[rows])
            for (chunk, changed), (rows, _) in zip(made, self.chunks, strict=True)
        ]
        return out + torch.cat(changes)

    def _part(self, rows, edits, q, k, v, kernel, heads, site) -> tuple[list[Attention], bool]:
        """The rows' attention after their transforms, and whether any changed it."""
        tokens = edits.tokens if edits and edits.transforms and site.cross else k.shape[1]
        given = parts = [Attention((Term(q[rows], k[rows, :tokens]),), v[rows, :tokens], heads, kernel)]
        for transform in edits.transforms if edits else ():
            parts = transform(parts, site)
        return parts, parts is not given

    def _check(self, q: Tensor, k: Tensor, site: Site) -> None:
        positions = site.grid[0] * site.grid[1]
        layer, tokens = ("attn2", self.context) if site.cross else ("attn1", positions)
        tiled = q.shape[0] != k.shape[0] and coarse(site)  # by HyperTile, where attention would be shared
        if tiled or (q.shape[0] == self.rows and (q.shape[1] != positions or k.shape[1] != tokens)):
            raise ValueError(
                f"a patch on {layer} changes the number of positions or tokens ({q.shape[1]} and {k.shape[1]} instead "
                f"of {positions} and {tokens}), so that words and places cannot be told any "
                "more; remove the patch (token merging or HyperTile, for example) or the attention edit"
            )
