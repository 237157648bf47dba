"""Captions as the text encoder takes them: tokens of the host's T5 tokenizer, as rows of a small embedding table."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .loader import TOKENS, ShapesT5Tokenizer


@dataclass(frozen=True)
class Captions:
    """`rows` (n, TOKENS) and `empty` (TOKENS,) index `vocabulary` (words,), T5's ids of the tokens in use."""

    rows: Tensor
    empty: Tensor
    vocabulary: Tensor


def read(captions: list[str], tokens: int = TOKENS) -> Captions:
    """The captions' tokens, padded to so many, and those of the empty one."""
    tokenizer = ShapesT5Tokenizer()
    tokenizer.min_length = tokens
    unique = sorted({*captions, ""})
    read_once = {text: [token for token, _ in tokenizer.tokenize_with_weights(text)[0]] for text in unique}
    ids = torch.tensor([read_once[text] for text in [*captions, ""]])
    vocabulary, rows = ids.unique(return_inverse=True)
    return Captions(rows[:-1], rows[-1], vocabulary)
