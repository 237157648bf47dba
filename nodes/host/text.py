"""Texts as the host's encoders read them: tokens at the places where the model sees them, and embeddings by name."""

import torch
from torch import Tensor

from ...attention.spelling import EMBEDDING
from ...attention.tokens import Prompt, embedding_pieces, mentioned, prompt_of


def tokenized(clip, text: str) -> Prompt:
    """The prompt's tokens at the places where the model sees them; ValueError for an encoder without CLIP's tokens."""
    check_writable(text)
    by_encoder = clip.tokenize(text)
    for name in ("l", "g", "h"):
        tokenizer = getattr(clip.tokenizer, f"clip_{name}", None)
        if name in by_encoder and tokenizer is not None:
            words, vectors = tokenizer.inv_vocab, iter(embeddings_of(clip, text, by_encoder, name))
            chunks = [
                [next(vectors) if torch.is_tensor(t) else words[t] for t, *_ in chunk] for chunk in by_encoder[name]
            ]
            return prompt_of(text, chunks)
    raise ValueError(
        f"this text encoder ({type(clip.tokenizer).__name__}) has no CLIP tokens, so words cannot be told apart in its "
        "attention; the attention nodes work with SD1.x, SD2.x and SDXL"
    )


def check_writable(text: str) -> None:
    """ValueError for halves of characters, which JSON can hold and no text encoder takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{text[:100]!r} holds a half of a character (a lone surrogate); write the text anew")


def encoded(clip, prompt: Prompt, also: dict | None = None) -> list:
    """The prompt as CONDITIONING, with further options; ValueError unless it has one embedding for each token."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text), add_dict=also or {})
    embeddings = conditioning[0][0].shape[1]
    if embeddings != prompt.length:
        raise ValueError(
            f"{prompt.text!r} has {prompt.length} tokens and {embeddings} embeddings: this text encoder joins "
            "others to CLIP's; the attention nodes work with SD1.x, SD2.x and SDXL"
        )
    return conditioning


def embeddings_of(clip, text: str, by_encoder: dict, name: str) -> list[str | None]:
    """The piece of each embedding vector among the tokens of an encoder, in order; None for one that no name explains.

    An embedding is known by its vectors, which are those that the host reads for its name alone. ValueError for one of
    another width than its encoder's: the host would leave it out, and the words after it would move.
    """
    vectors = _vectors(by_encoder[name])
    pieces: list[str | None] = [None] * len(vectors)
    at = 0
    for names in mentioned(text) if vectors else ():
        for embedding in names:
            own = _vectors(clip.tokenize(EMBEDDING + embedding)[name])
            if own and len(own) <= len(vectors) - at and all(map(torch.equal, own, vectors[at:])):
                pieces[at : at + len(own)] = embedding_pieces(embedding, len(own))
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
