"""Embeddings in a prompt: which of the text encoder's vectors is of which `embedding:name`."""

import torch
from torch import Tensor

from ..attention.tokens import EMBEDDING, embedding_pieces, mentioned


def embeddings_of(clip, text: str, by_encoder: dict, name: str) -> list[str | None]:
    """The piece of each embedding vector among the tokens of an encoder, in order; None for one that no name explains.

    Told by the vectors: those that the host reads for a name alone. ValueError for an embedding of another width than
    its encoder's, which the host would leave out, and move the words after it.
    """
    vectors = _vectors(by_encoder[name])
    pieces: list[str | None] = [None] * len(vectors)
    at = 0
    for names in mentioned(text) if vectors else ():
        for each in names:
            own = _vectors(clip.tokenize(EMBEDDING + each)[name])
            if own and len(own) <= len(vectors) - at and all(map(torch.equal, own, vectors[at:])):
                pieces[at : at + len(own)] = embedding_pieces(each, len(own))
                at += len(own)
                break
    for encoder, chunks in by_encoder.items():
        _check_width(clip, encoder, _vectors(chunks), text)
    return pieces


def _vectors(chunks) -> list[Tensor]:
    return [token for chunk in chunks for token, *_ in chunk if torch.is_tensor(token)]


def _check_width(clip, encoder: str, vectors: list[Tensor], text: str) -> None:
    model = getattr(clip.cond_stage_model, f"clip_{encoder}", None) if vectors else None
    if model is None:
        return
    width = model.transformer.get_input_embeddings().weight.shape[-1]
    for vector in vectors:
        if vector.shape[-1] != width:
            raise ValueError(
                f"an embedding in {text!r} is {vector.shape[-1]} wide, and the text encoder ({encoder}) takes {width}: "
                "it was made for another model; use one that was made for this one"
            )
