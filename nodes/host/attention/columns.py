"""What the columns of a transformer's layers are in one call: of how many, and which are the words and the picture."""

from dataclasses import dataclass
from math import prod

import torch

from ....attention.layers import Grid
from .families import Family
from .rows import ModelCall


@dataclass(frozen=True)
class Columns:
    """The columns of a family's layers in one call: sections that follow each other, by name."""

    sections: dict[str, slice]
    grid: Grid
    tokens: int
    """How many of the text's are the call's, the first or the last; others are padding."""
    before: bool
    cropped: bool
    left_alone: tuple[tuple[int, int], ...]
    """Numbers of rows and columns of further calls in the same layers."""

    @classmethod
    def of(cls, family: Family, network, call: ModelCall) -> "Columns":
        grid = grid_of(family, network, call.latent)
        text = call.conds.get("num_tokens", call.tokens) if family.cropped else call.tokens
        tokens = text + 2 * _length(call.conds, "encoder_hidden_states_llama3")  # HiDream has them twice
        multiple = getattr(network, "pad_tokens_multiple", None) or 1  # of Z-Image, for text and picture
        references = _patches(family, network, call.conds)
        lengths = {
            "text": -(-tokens // multiple) * multiple,
            "picture": -(-prod(grid) // multiple) * multiple,
            "references": references,
            "registers": getattr(network, "register_tokens", torch.empty(1, 0)).shape[1],
            "vision": _length(call.conds, "clip_fea"),
            "glyphs": _length(call.conds, "txt_byt5"),
        }
        sections, end = {}, 0
        for name in ordered(family, network):
            sections[name] = slice(end, end + lengths[name])
            end += lengths[name]
        own, seen = lengths["picture"] + references, lengths["vision"] or tokens  # without one it is the text again
        alone = {"self": ((own, own),), "vision": ((prod(grid), seen),)}
        return cls(sections, grid, tokens, family.before, family.cropped, alone.get(family.besides, ()))

    @property
    def total(self) -> int:
        return max(section.stop for section in self.sections.values())

    def expected(self) -> tuple[int, int]:
        """The numbers of rows and columns of a call."""
        return (self.total if "picture" in self.sections else prod(self.grid)), self.total

    def words(self, own: int) -> slice:
        """Where the text of a conditioning with so many tokens is; ValueError where they are not all there."""
        own = min(own, self.tokens) if self.cropped else own
        if own > self.tokens:
            raise ValueError(
                f"the prompt has {own} tokens and the network gets {self.tokens}, so that words cannot be told any more"
            )
        start = self.sections["text"].start + (self.tokens - own if self.before else 0)
        return slice(start, start + own)

    def picture(self) -> slice | None:
        """Where the picture is, without its padding; None in a layer that attends to the text alone."""
        place = self.sections.get("picture")
        return place and slice(place.start, place.start + prod(self.grid))


def ordered(family: Family, network) -> list[str]:
    """The sections of the columns in their order: older hosts have HunyuanVideo's picture first."""
    names = family.columns.split() or ["text"]
    if any(getattr(block, "flipped_img_txt", False) for block in getattr(network, "double_blocks", ())):
        names.sort(key=lambda name: name not in ("references", "picture"))
    return names


def grid_of(family: Family, network, latent: Grid) -> Grid:
    """The places of a latent's patches; sides that are no multiple of the patch are padded by the network."""
    patch = family.patch or network.patch_size
    frames = getattr(network, "patch_size_t", None) or 1  # of CogVideoX 1.5
    patch = (frames, patch, patch) if isinstance(patch, int) else tuple(patch)
    patch = ((1,) * len(latent) + patch)[-len(latent) :]
    return tuple(-(-side // of) for side, of in zip(latent, patch, strict=True))


def _length(conds: dict, name: str) -> int:
    value = conds.get(name)
    return 0 if value is None else value.shape[-2]


def _patches(family: Family, network, conds: dict) -> int:
    """How many patches the reference pictures of a call have."""
    references = [*(conds.get("ref_latents") or ()), *([conds["ref_latent"]] if "ref_latent" in conds else ())]
    return sum(prod(grid_of(family, network, tuple(latent.shape[2:]))) for latent in references)
