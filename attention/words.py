"""The words of a text encoder's tokens, the same ones in every encoder.

CLIP's tokenizer lower-cases and splits a prompt at spaces, punctuation, digits and contractions. In other encoders the
text that the tokens spell is split in the same way. Words that share a token (`-re|x` for `-rex`, `1985`) are one word.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import reduce
from itertools import accumulate, groupby

from .spelling import CLIP, UNKNOWN, continues, is_embedding, spelled, spelled_bytes

_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[a-z]+|1|[^\sa-z1]+")


@dataclass(frozen=True)
class Token:
    """One position of a text encoder's sequence."""

    piece: str
    """As in the vocabulary: `cat</w>`, `▁cat`, `<|startoftext|>`.

    A vector of an embedding is `embedding:name`, the last one `embedding:name</w>`; empty where its name is not known.
    """
    kind: str = ""
    """What is not of the prompt: `start` or `end`, of a template too, or `padding`. Empty for what is."""

    @property
    def special(self) -> bool:
        """Start, end, template or padding."""
        return bool(self.kind)


@dataclass(frozen=True)
class Stream:
    """What one encoder gives to the conditioning: its tokens, as they stand there."""

    name: str
    """The encoder's, as the host's tokenizer has it: `l`, `t5xxl`."""
    tokens: tuple[Token, ...]
    spelling: str = CLIP


@dataclass(frozen=True)
class Word:
    """One word, number, or run of signs; `embedding:name`, or `embedding` for a run of vectors without a name."""

    text: str
    """Read from the pieces: lower case, but for an embedding's name."""
    positions: tuple[int, ...]
    """In the conditioning, over all streams."""


def words_of(streams: Sequence[Stream]) -> tuple[Word, ...]:
    """The words in order, once each, where they stand in all streams."""
    starts = accumulate((len(stream.tokens) for stream in streams), initial=0)
    return tuple(reduce(_joined, (list(_words(*each)) for each in zip(streams, starts, strict=False)), []))


def _words(stream: Stream, start: int) -> Iterator[Word]:
    tokens = [(position, token.piece) for position, token in enumerate(stream.tokens, start) if not token.special]
    for embeddings, run in groupby(tokens, lambda token: is_embedding(token[1])):
        if stream.spelling == CLIP or embeddings:
            yield from _words_by_their_ends(list(run))
        else:
            yield from _words_of_text(list(run), stream.spelling)


def _words_by_their_ends(tokens: list[tuple[int, str]]) -> Iterator[Word]:
    """Words whose last piece says that it is; one that is split at a chunk's edge is one word."""
    groups: list[list[tuple[int, str]]] = []
    for token in tokens:
        if groups and continues(groups[-1][-1][1], token[1]):
            groups[-1].append(token)
        else:
            groups.append([token])
    for group in groups:
        positions, pieces = zip(*group, strict=True)
        yield Word(spelled(list(pieces)), positions)


def _words_of_text(tokens: list[tuple[int, str]], spelling: str) -> Iterator[Word]:
    """Words of what the tokens spell; those that share a token are one."""
    pieces = [(position, spelled_bytes(piece, spelling)) for position, piece in tokens]
    owners = [position for position, piece in pieces for _ in piece]  # of each byte
    text = b"".join(piece for _, piece in pieces).decode("utf-8", "surrogateescape")
    places = list(accumulate((len(c.encode("utf-8", "surrogateescape")) for c in text), initial=0))
    spans: list[tuple[int, int]] = []
    for match in _WORD.finditer("".join(map(_class, text))):
        start, end = match.span()
        if spans and owners[places[start]] == owners[places[spans[-1][1]] - 1]:
            start = spans.pop()[0]
        spans.append((start, end))
    for start, end in spans:
        spelt = re.sub("[\udc80-\udcff]+", UNKNOWN, text[start:end])
        yield Word(spelt.lower(), tuple(dict.fromkeys(owners[places[start] : places[end]])))


def _class(character: str) -> str:
    """What CLIP's tokenizer splits at: `a` for a letter (those of English as they are), `1` a digit, else itself."""
    if character.isascii():
        return "1" if character.isdigit() else character.lower()
    if character.isspace():
        return " "
    unreadable = character == UNKNOWN or "\udc80" <= character <= "\udcff"
    return {"L": "a", "N": "1"}.get("L" if unreadable else unicodedata.category(character)[0], "!")


def _joined(ours: list[Word], theirs: list[Word]) -> list[Word]:
    """The words of two streams of one prompt, each where it stands in both; what only one of them has stays."""
    words: list[Word] = []
    a, b = ([_written([word]) for word in side] for side in (ours, theirs))
    for kind, i, i_end, j, j_end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            words += (_one([one], [other]) for one, other in zip(ours[i:i_end], theirs[j:j_end], strict=True))
        elif kind == "replace":
            words += _by_length(ours[i:i_end], theirs[j:j_end])
        else:
            words += ours[i:i_end] + theirs[j:j_end]
    return words


def _by_length(ours: list[Word], theirs: list[Word]) -> list[Word]:
    """Words that are split or written in different ways, joined until they are of the same length; else one by one."""
    words: list[Word] = []
    while ours and theirs:
        lengths = [list(accumulate(len(_written([word])) for word in side)) for side in (ours, theirs)]
        shortest = min(set(lengths[0]) & set(lengths[1]), default=None)
        i, j = (1, 1) if shortest is None else (of.index(shortest) + 1 for of in lengths)
        words.append(_one(ours[:i], theirs[:j]))
        ours, theirs = ours[i:], theirs[j:]
    return words + ours + theirs


def _one(ours: list[Word], theirs: list[Word]) -> Word:
    """One word, called as where it is known and whole."""
    named = min(ours, theirs, key=lambda side: (UNKNOWN in _written(side), len(side), -len(_written(side))))
    positions = sorted({position for word in ours + theirs for position in word.positions})
    return Word("".join(word.text for word in named), tuple(positions))


def _written(words: list[Word]) -> str:
    return unicodedata.normalize("NFKC", "".join(word.text for word in words)).casefold()
