"""How transformers show their attention: hooks say which layer is running, the host's override sees its call.

Both are there for the time of one call of the network, on the very instance that runs it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ....attention.core import Attention, Term
from ....attention.layers import DepthPolicy, Site
from .columns import Columns
from .families import Family, layers_of
from .layout import as_bias, flat, heads_first, heads_first_kernel
from .override import KEY, chained
from .rows import Chunk, ModelCall


class TransformerLayers:
    """The layers of a transformer of this family."""

    def __init__(self, network, family: Family):
        self._family, self._names = family, layers_of(network, family)
        self.policy = DepthPolicy(frozenset(family.heated(self._names)))

    @contextmanager
    def hooked(self, call: ModelCall, network, options: dict) -> Iterator[dict]:
        """The transformer options in which each layer does what acts on it, round the override that is there."""
        acting = call.acting(self._family.kind)
        if acting is None:
            yield options
            return
        layers = {name: network.get_submodule(name) for name in self._names}
        columns = Columns.of(self._family, network, call)
        running = _Running(acting, layers, columns, self.policy, options.get(KEY))
        with running.hooks():
            yield {**options, KEY: running}


@dataclass
class _Running:
    """The attention override of one call of the network."""

    call: ModelCall
    layers: dict[str, torch.nn.Module]
    columns: Columns
    policy: DepthPolicy
    previous: Callable | None
    layer: str | None = field(default=None, init=False)

    @contextmanager
    def hooks(self, layer: str | None = None) -> Iterator[None]:
        """Inside, it is known which layer is running; to begin with it is this one."""
        self.layer, hooks = layer, []
        try:
            for name, module in self.layers.items():
                hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
                hooks.append(module.register_forward_hook(lambda *_: self._enter(None)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def as_now(self) -> Callable[[], AbstractContextManager]:
        """For a part of the network that is run once more, after the call: what is known now."""
        return partial(self.hooks, self.layer)

    def _enter(self, layer: str | None) -> None:
        self.layer = layer

    def __call__(self, function: Callable, *args, **kwargs) -> Tensor:
        plain = chained(self.previous, function)
        edited = None if self.layer is None else self._edited(function, *args, **kwargs)
        return plain(*args, **kwargs) if edited is None else edited

    def _edited(self, function, q, k, v, heads, mask=None, *, skip_reshape=False, skip_output_reshape=False, **kwargs):
        """What edits make of the call; None where nothing changes."""
        if not skip_reshape:
            q, k, v = (heads_first(x, heads) for x in (q, k, v))
        if not self._whole(q, k):
            return None
        kernel = heads_first_kernel(function, self.previous, heads, kwargs)
        whole = Attention((Term(q, k, bias=as_bias(mask, q.dtype)),), v, kernel)
        edited = [self._parts(chunk, whole) for chunk in self.call.chunks]
        if not any(edited):  # bit for bit what it would have been
            return None
        out = torch.cat([
            self._out(_rows(whole, chunk.rows), parts) for chunk, parts in zip(self.call.chunks, edited, strict=True)
        ])  # fmt: skip
        return out if skip_output_reshape else flat(out)

    def _whole(self, q: Tensor, k: Tensor) -> bool:
        """Whether this is the layer's own call, not one beside it; ValueError for one that can be neither."""
        lengths, expected = (q.shape[2], k.shape[2]), self.columns.expected()
        beside = lengths in self.columns.left_alone
        if len(q) != self.call.rows or (lengths == expected) == beside:
            raise ValueError(
                f"{self.layer} attends from {lengths[0]} to {lengths[1]} places in {len(q)} rows, and from "
                f"{expected[0]} to {expected[1]} in {self.call.rows} were expected, so that words and places cannot be "
                "told any more: a patch changes them (token merging, for example), or the model is conditioned by what "
                "is not known here; remove that or the attention edit"
            )
        return not beside

    def _parts(self, chunk: Chunk, whole: Attention) -> list[Attention] | None:
        """The attention of the picture's rows after a chunk's edits, in parts; None where nothing changes."""
        if chunk.edits is None:
            return None
        words, picture = self.columns.words(chunk.edits.tokens), self.columns.picture()
        rows = _rows(whole, chunk.rows, picture)
        if picture:
            rows = replace(rows, words=words)
        latent, sigma = self.call.latent, self.call.sigma
        return chunk.edits.apply(
            rows, Site(self.layer or "", words, picture, self.columns.grid, latent, sigma, self.policy)
        )

    def _out(self, whole: Attention, parts: list[Attention] | None) -> Tensor:
        """(batch, heads, rows, width): the picture's rows as edited, all others as they are."""
        picture = self.columns.picture()
        if parts is None:
            return whole.out()
        edited = torch.cat([part.out() for part in parts])
        if picture is None:
            return edited
        rest = [_rows(whole, slice(None), rows) for rows in (slice(0, picture.start), slice(picture.stop, None))]
        before, after = (part.out() if part.terms[0].q.shape[2] else edited[:, :, :0] for part in rest)
        return torch.cat([before, edited, after], 2)


def _rows(whole: Attention, batch: slice, rows: slice | None = None) -> Attention:
    """The attention of some rows of some of the batch."""
    (term,) = whole.terms
    bias, rows = term.bias, rows or slice(None)
    if bias is not None:
        bias = bias[batch if len(bias) > 1 else slice(None), :, rows if bias.shape[2] > 1 else slice(None)]
    return replace(whole, terms=(Term(term.q[batch, :, rows], term.k[batch], bias=bias),), v=whole.v[batch])
