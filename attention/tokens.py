"""Words and the text encoder's tokens: where a word is.

CLIP's tokenizer lower-cases, splits a prompt at spaces, punctuation, digits and contractions, and each of these words
into byte-pair pieces, the last of which ends in `</w>`. Prompts of more than 75 tokens continue in further chunks, each
with its own start, end and padding; a position is counted over all chunks.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import product

from .spelling import EMBEDDING, WORD_END, continues, spelled

START, END = "<|startoftext|>", "<|endoftext|>"

# as CLIP's tokenizer splits; one by one where only some versions of it split: signs, and scripts without spaces
_ATOM = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_²³¹¼-¾\u2e80-\U0010ffff]+|\S")
_WEIGHT = re.compile(r"(?<!\\)\(|(?::\s*[-+]?[\d.]+\s*)?(?<!\\)\)")
_MENTION = re.compile(EMBEDDING + r"((?:\\[()]|[^\s()])+)")


@dataclass(frozen=True)
class Token:
    """One position of the text encoder's sequence."""

    piece: str
    """As in the vocabulary: `cat</w>`, `<|startoftext|>`.

    A vector of an embedding is `embedding:name`, the last one `embedding:name</w>`; empty where its name is not known.
    """
    special: bool
    """Start, end or padding."""


@dataclass(frozen=True)
class Word:
    """One word, number, or run of signs; `embedding:name`, or `embedding` for a run of vectors without a name."""

    text: str
    """Read from the pieces: lower case, but for an embedding's name."""
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt and its tokens, over all chunks."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def length(self) -> int:
        return len(self.tokens)

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words in order; one that is split at a chunk's edge is one word."""
        groups: list[list[int]] = []
        for position, token in enumerate(self.tokens):
            if token.special:
                continue
            if groups and continues(self.tokens[groups[-1][-1]].piece, token.piece):
                groups[-1].append(position)
            else:
                groups.append([position])
        return tuple(Word(spelled([self.tokens[p].piece for p in group]), tuple(group)) for group in groups)

    def positions(self, phrase: str) -> list[int]:
        """Positions of every occurrence of a word, or of a phrase of consecutive words.

        Capitals, spaces, weights `(cat:1.2)` and punctuation around the phrase make no difference. An embedding is
        named as it is written, `embedding:name`; `embedding` alone is each of them. ValueError, with the words there
        are, where the phrase is not in the prompt or has no word in it.
        """
        typed, plain = _unescaped(phrase), _unescaped(_WEIGHT.sub(" ", phrase))
        inside = [index for index, character in enumerate(plain) if not aside(character)]
        plain = plain[inside[0] : inside[-1] + 1] if inside else ""
        positions = self._occurrences(plain) or self._occurrences(typed) if plain else []
        if not positions:
            listed = ", ".join(dict.fromkeys(w.text for w in self.words if not all(map(aside, w.text)))) or "none"
            problem, nearest = "is not in" if plain else "names no word of", self._nearest(plain)
            meant = f"did you mean {nearest!r}? " if nearest else ""
            raise ValueError(f"{phrase!r} {problem} the prompt {self.text!r}; {meant}its words are: {listed}")
        return positions

    def _nearest(self, phrase: str) -> str:
        """The consecutive words, as many as the phrase's, that are written most like it; empty where none is."""
        words, count = [word.text for word in self.words], max(1, len(phrase.split()))
        runs = [" ".join(words[first : first + count]) for first in range(len(words))]
        return next(iter(get_close_matches(phrase.casefold(), runs, 1)), "")

    def _occurrences(self, phrase: str) -> list[int]:
        wanted = _atoms(phrase)
        positions: set[int] = set()
        named = [_atoms(word.text) for word in self.words]
        unnamed = [_atoms(word.text.partition(EMBEDDING)[0] or "embedding") for word in self.words]
        for of_words, first in product((named, unnamed), range(len(self.words))):
            atoms: list[str] = []
            end = first
            while end < len(self.words) and len(atoms) < len(wanted):
                atoms += of_words[end]
                end += 1
            if atoms == wanted:
                positions.update(p for word in self.words[first:end] for p in word.positions)
        return sorted(positions)


def prompt_of(text: str, chunks: Sequence[Sequence[str | None]]) -> Prompt:
    """The prompt from the pieces of each chunk, None for an embedding vector without a name.

    A chunk begins with the start token; what follows its first end token is padding, whatever it is padded with.
    """
    tokens: list[Token] = []
    for chunk in chunks:
        end = list(chunk).index(END)
        tokens += [Token(piece or "", index == 0 or index >= end) for index, piece in enumerate(chunk)]
    return Prompt(text, tuple(tokens))


def mentioned(text: str) -> Iterator[tuple[str, ...]]:
    """For each `embedding:name` of a prompt, in order, what its name may be: as typed, or with less behind it.

    What follows may be a weight, `(embedding:name:1.2)`, a comma, or the `<` or `[` that ends a name in newer hosts.
    """
    for typed in _MENTION.findall(text):
        shorter = re.split(r"[<\[]", typed)[0]
        names = (part.strip(",:") for each in (shorter, typed) for part in (each, each.rpartition(":")[0]))
        yield tuple(dict.fromkeys(filter(None, names)))


def embedding_pieces(name: str, vectors: int) -> list[str]:
    """The pieces of a named embedding of so many vectors, as of a word."""
    piece = EMBEDDING + _unescaped(name)
    return [piece] * (vectors - 1) + [piece + WORD_END]


def _atoms(text: str) -> list[str]:
    """The smallest units words are made of, the same for a phrase as typed and for the words the tokenizer made."""
    return _ATOM.findall(unicodedata.normalize("NFC", text).casefold())


def _unescaped(phrase: str) -> str:
    return phrase.replace(r"\(", "(").replace(r"\)", ")")


def aside(character: str) -> bool:
    """Whether a character around a phrase does not belong to it: a space or punctuation."""
    return character.isspace() or character in string.punctuation or unicodedata.category(character).startswith("P")
