"""Which tokens of which encoder a conditioning is made of, found by asking the host.

The host's text models join, cut and reorder what their encoders give: SD3 puts T5 behind CLIP, Qwen-Image drops its
template. Here an encoder is stood in for by one that gives each token a number for its embedding; the text model then
does with the numbers what it does with embeddings, and no table has to follow the host.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

SIZE = 1 << 16  # of the numbers of one encoder: float32 has all of them for 255 encoders
CLIPS = ("l", "g", "h")


@dataclass(frozen=True)
class Columns:
    """A run of the conditioning's columns that one encoder's tokens make, counted over its chunks."""

    encoder: str
    """Empty where no token is in the columns."""
    tokens: tuple[int, ...]


def columns_of(model: Any, by_encoder: dict) -> list[Columns]:
    """The conditioning's columns, in order; ValueError for a text model that makes others than its tokens'."""
    if any(not hasattr(module, "encode_token_weights") for module in model.children()):
        raise ValueError("the embeddings of tokens go through further layers")
    names = list(dict.fromkeys(_stands_for(name, by_encoder) for name in by_encoder))
    encoders = {id(tokens): names.index(_stands_for(name, by_encoder)) for name, tokens in by_encoder.items()}
    text, _, *more = _numbering(model, encoders).encode_token_weights(by_encoder)
    options = more[0] if more else {}
    if "t5xxl_ids" in options:  # Anima: the network reads the encoder at the places of T5's tokens
        return [Columns("t5xxl", tuple(range(len(options["t5xxl_ids"]))))]
    return [run for part in parts_of(text, options) for run in _runs(part, names)]


def parts_of(text: Tensor, options: dict) -> list[Tensor]:
    """What the network joins, (1, columns, width) each: HiDream's goes on with Llama's embeddings, twice."""
    llama = options.get("conditioning_llama3")
    return [text] if llama is None else [text, llama[:, 0], llama[:, 0]]


def length_of(text: Tensor, options: dict) -> int:
    """How many columns of text the network gets from a conditioning."""
    ids = options.get("t5xxl_ids")
    return ids.numel() if ids is not None else sum(part.shape[1] for part in parts_of(text, options))


def _stands_for(name: str, by_encoder: dict) -> str:
    """CLIP's encoders stand beside each other, in the same columns: the first is read for all."""
    return next(clip for clip in CLIPS if clip in by_encoder) if name in CLIPS else name


def _numbering(model: Any, encoders: dict[int, int]) -> Any:
    """The text model with other encoders; the model that was passed in is not touched."""
    copy = object.__new__(type(model))
    modules = {name: _Numbers(module, encoders) for name, module in model.named_children()}
    vars(copy).update(vars(model), _modules=modules)
    return copy


class _Numbers:
    """In place of an encoder: embeddings that are numbers, of the shape of the encoder's own."""

    def __init__(self, encoder: Any, encoders: dict[int, int]):
        self.encoder, self.encoders = encoder, encoders

    def encode_token_weights(self, chunks: list):
        device = comfy.model_management.intermediate_device()
        count, first = sum(map(len, chunks)), 1 + SIZE * self.encoders[id(chunks)]
        width = self.encoder.transformer.get_input_embeddings().embedding_dim
        numbers = torch.arange(first, first + count, device=device).float().reshape(1, -1, 1).expand(-1, -1, width)
        layer = self.encoder.layer
        if isinstance(layer, list) or layer == "all":
            layers = len(layer) if isinstance(layer, list) else self.encoder.num_layers + 1
            numbers = numbers.unsqueeze(1).expand(-1, layers, -1, -1)
        mask = {"attention_mask": torch.ones(1, count, dtype=torch.long, device=device)}
        pooled = torch.zeros(1, 1, device=device)
        return (numbers, pooled, mask) if self.encoder.return_attention_masks else (numbers, pooled)


def _runs(part: Tensor, names: list[str]) -> Iterator[Columns]:
    """The columns by encoder; 0 is what no token is in."""
    numbers = part[0].amax(-1)
    if not ((part[0] == 0) | (part[0] == numbers.unsqueeze(-1))).all():
        raise ValueError("the embeddings of tokens are mixed")
    for encoder, run in groupby(numbers.long().tolist(), lambda number: (number - 1) // SIZE):
        name = names[encoder] if encoder >= 0 else ""
        yield Columns(name, tuple((number - 1) % SIZE for number in run))
