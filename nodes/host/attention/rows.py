"""Whose rows are whose in a call of the network, and what is done to them.

Edits ride in `transformer_options` by conditioning (uuid), and one wrapper round the model call has the reader of the
model's layers put them in: nothing is left on the model, and the order of patch nodes does not matter.
"""

from dataclasses import dataclass, replace
from typing import Any

from ....attention.core import Attention
from ....attention.edit import AttentionEdit, AttentionLook
from ....attention.layers import Grid, Site

EDITS, LAYERS = "steer_edits", "steer_layers"


@dataclass(frozen=True)
class OwnEdits:
    """What is done to the rows of one conditioning, in order; `tokens` is the length of its own context."""

    edits: tuple[AttentionEdit, ...]
    looks: tuple[AttentionLook, ...]
    tokens: int

    def then(self, other: "OwnEdits") -> "OwnEdits":
        return replace(other, edits=self.edits + other.edits, looks=self.looks + other.looks)

    def acting(self, kind: str, sigma: float) -> "OwnEdits | None":
        """Those that act on layers of this kind at this level; None where none does."""
        edits, looks = (tuple(x for x in own if x.acts(kind, sigma)) for own in (self.edits, self.looks))
        return replace(self, edits=edits, looks=looks) if edits or looks else None

    def apply(self, rows: Attention, site: Site) -> list[Attention] | None:
        """The rows, in parts that follow each other; None where nothing changes."""
        parts = None
        for edit in self.edits:
            parts = edit.apply(parts or [rows], site) or parts
        for look in self.looks:
            look.see(parts or [rows], site)
        return parts


@dataclass(frozen=True)
class Chunk:
    """The rows of one conditioning in a call, and what is done to them."""

    rows: slice
    edits: OwnEdits | None


@dataclass(frozen=True)
class ModelCall:
    """A call of the network: chunks that follow each other, `rows` in all, with contexts of so many tokens.

    `conds` is what else the network gets, by the host's names.
    """

    chunks: tuple[Chunk, ...]
    rows: int
    tokens: int
    latent: Grid
    sigma: float
    conds: dict

    def acting(self, kind: str) -> "ModelCall | None":
        """The call with what acts on layers of this kind alone; None where nothing does."""
        chunks = tuple(Chunk(c.rows, c.edits and c.edits.acting(kind, self.sigma)) for c in self.chunks)
        return replace(self, chunks=chunks) if any(chunk.edits for chunk in chunks) else None


def with_hooks(executor, x, t, c_concat=None, c_crossattn: Any = None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    edits, uuids = transformer_options.get(EDITS, {}), transformer_options["uuids"]
    if not any(uuid in edits for uuid in uuids):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    size = len(x) // len(uuids)
    chunks = tuple(Chunk(slice(i * size, (i + 1) * size), edits.get(uuid)) for i, uuid in enumerate(uuids))
    sigma = float(transformer_options["sigmas"].max())
    call = ModelCall(chunks, len(x), c_crossattn.shape[1], tuple(x.shape[2:]), sigma, kwargs)
    network = executor.class_obj.diffusion_model
    with transformer_options[LAYERS].hooked(call, network, transformer_options) as options:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
