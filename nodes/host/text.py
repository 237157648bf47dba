"""Texts as the host's encoders read them: tokens at the places where the model sees them, and embeddings by name."""

from dataclasses import replace
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from ...attention.spelling import CLIP, EMBEDDING, spelling_of
from ...attention.tokens import Prompt, embedding_pieces, mentioned, prompt_of
from ...attention.words import Stream, Token
from .text_columns import CLIPS, Columns, columns_of, length_of

OTHERS = ("the", "cat")
"""Prompts that have the template in common with any other; the empty one has its own in some encoders."""


def tokenized(clip, text: str) -> Prompt:
    """The prompt's tokens as they stand in its conditioning; ValueError for an encoder whose words cannot be told."""
    check_writable(text)
    by_encoder = clip.tokenize(text)
    columns = _columns(clip, by_encoder)
    streams = {run.encoder: _stream(clip, text, by_encoder, run.encoder) for run in columns if run.encoder}
    return Prompt(text, tuple(_cut(streams, run) for run in columns))


def _columns(clip, by_encoder) -> list[Columns]:
    encoder = type(clip.tokenizer).__name__
    names = list(by_encoder) if isinstance(by_encoder, dict) else []
    known = bool(names) and all(hasattr(_named(clip.tokenizer, name), "inv_vocab") for name in names)
    if known and {*names} <= {*CLIPS}:
        name = next(name for name in CLIPS if name in names)
        return [Columns(name, tuple(range(sum(map(len, by_encoder[name])))))]
    try:
        columns = columns_of(clip.cond_stage_model, by_encoder) if known else []
    except Exception as error:  # of a text model that takes no numbers for embeddings
        raise ValueError(
            f"this text encoder ({encoder}) joins its tokens to others or mixes them, so words cannot be told apart in "
            "its attention"
        ) from error
    if columns and all(_spelling(clip, run.encoder) for run in columns if run.encoder):
        return columns
    raise ValueError(
        f"this text encoder ({encoder}) has no CLIP tokens, so words cannot be told apart in its attention; the "
        "attention nodes work with the text encoders of SD1.x, SD2.x, SDXL and of most transformers"
    )


def _named(of, name: str) -> Any:
    """The tokenizer or encoder of that name, among those that are joined; None where there is none."""
    return getattr(of, f"clip_{name}", None) or getattr(of, name, None)


def _spelling(clip, name: str) -> str | None:
    return spelling_of(_named(clip.tokenizer, name).inv_vocab.values())


def _stream(clip, text: str, by_encoder: dict, name: str) -> Stream:
    """All tokens of an encoder; a template's are starts and ends."""
    chunks, spelling = _chunks(clip, text, by_encoder, name), _spelling(clip, name) or CLIP
    if spelling == CLIP:
        return prompt_of(text, [[piece for piece, _ in chunk] for chunk in chunks], name).streams[0]
    tokens = [token for chunk in chunks for token in chunk]
    pieces = [piece for piece, padding in tokens if not padding]
    before, after = _template(clip, name, pieces)
    words = len(pieces) - before - after if text.strip() else 0
    kinds = iter(["start"] * before + [""] * words + ["end"] * (len(pieces) - before - words))
    return Stream(name, tuple(Token(piece, "padding" if of else next(kinds)) for piece, of in tokens), spelling)


def _template(clip, name: str, pieces: list[str]) -> tuple[int, int]:
    """How many pieces at the beginning and at the end are those of any prompt; padding is not among them."""
    all_pieces = [pieces]
    for other in OTHERS:
        chunks = _chunks(clip, other, clip.tokenize(other), name)
        all_pieces.append([piece for chunk in chunks for piece, padding in chunk if not padding])
    before = len(commonprefix(all_pieces))
    return before, len(commonprefix([of[before:][::-1] for of in all_pieces]))


def _chunks(clip, text: str, by_encoder: dict, name: str) -> list[list[tuple[str, bool]]]:
    """The tokens as (piece, whether it is that of padding); the piece is empty for an embedding without a name."""
    tokenizer, vectors = _named(clip.tokenizer, name), iter(embeddings_of(clip, text, by_encoder, name))
    pieces, padding = tokenizer.inv_vocab, tokenizer.pad_token
    return [
        [
            (next(vectors) or "", False)
            if torch.is_tensor(token)
            else (pieces.get(token, f"<{token}>"), token == padding)
            for token, *_ in chunk
        ]
        for chunk in by_encoder[name]
    ]


def _cut(streams: dict[str, Stream], run: Columns) -> Stream:
    """Of an encoder's tokens those in the conditioning."""
    if not run.encoder:
        return Stream("", (Token("", "padding"),) * len(run.tokens))
    stream = streams[run.encoder]
    return replace(stream, tokens=tuple(stream.tokens[number] for number in run.tokens))


def check_writable(text: str) -> None:
    """ValueError for halves of characters, which JSON can hold and no text encoder takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{text[:100]!r} holds a half of a character (a lone surrogate); write the text anew")


def encoded(clip, prompt: Prompt, also: dict | None = None) -> list:
    """The prompt as CONDITIONING, with further options; ValueError unless it has one embedding for each token."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text), add_dict=also or {})
    embeddings = length_of(*conditioning[0])
    if embeddings != prompt.length:
        encoders = ", ".join(f"{stream.name}: {len(stream.tokens)}" for stream in prompt.streams)
        raise ValueError(
            f"{prompt.text!r} has {prompt.length} tokens ({encoders}) and {embeddings} embeddings: this text encoder "
            f"({type(clip.tokenizer).__name__}) joins others to them, so words cannot be told apart in its attention"
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
    beside = [encoder for encoder in by_encoder if encoder == name or {encoder, name} <= {*CLIPS}]
    for encoder in beside:
        _check_width(clip, encoder, _vectors(by_encoder[encoder]), text)
    return pieces


def _vectors(chunks) -> list[Tensor]:
    return [token for chunk in chunks for token, *_ in chunk if torch.is_tensor(token)]


def _check_width(clip, encoder: str, vectors: list[Tensor], text: str) -> None:
    model = _named(clip.cond_stage_model, encoder) if vectors else None
    if model is None:
        return
    width = model.transformer.get_input_embeddings().weight.shape[-1]
    for vector in vectors:
        if vector.shape[-1] != width:
            raise ValueError(
                f"an embedding in {text!r} is {vector.shape[-1]} wide, and the text encoder ({encoder}) takes {width}: "
                "it was made for another model; use one that was made for this one"
            )
