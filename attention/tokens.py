"""Words and the text encoders' tokens: where a word is.

A prompt is made of the streams that its conditioning is joined of: CLIP's, or, in SD3, CLIP's and then T5's. CLIP's
tokenizer splits each word into byte-pair pieces, the last of which ends in `</w>`. Prompts of more than 75 tokens
continue in further chunks, each with its own start, end and padding. A position is counted over all chunks and streams.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import accumulate, pairwise, product

from .spelling import EMBEDDING, UNKNOWN, WORD_END
from .words import Stream, Token, Word, words_of

START, END = "<|startoftext|>", "<|endoftext|>"

# as CLIP's tokenizer splits; one by one where only some versions of it split: signs, and scripts without spaces
_ATOM = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_²³¹¼-¾\u2e80-\U0010ffff]+|\S")
_WEIGHT = re.compile(r"(?<!\\)\(|(?::\s*[-+]?[\d.]+\s*)?(?<!\\)\)")
_MENTION = re.compile(EMBEDDING + r"((?:\\[()]|[^\s()])+)")


@dataclass(frozen=True)
class Prompt:
    """A prompt and its tokens, in the order in which the conditioning has them."""

    text: str
    streams: tuple[Stream, ...]

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """Of all streams."""
        return tuple(token for stream in self.streams for token in stream.tokens)

    @property
    def length(self) -> int:
        """Of the conditioning."""
        return len(self.tokens)

    @property
    def spans(self) -> tuple[range, ...]:
        """The positions of each stream."""
        ends = accumulate((len(stream.tokens) for stream in self.streams), initial=0)
        return tuple(range(*ends) for ends in pairwise(ends))

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words in order, once each, where they stand in all streams."""
        return words_of(self.streams)

    def positions(self, phrase: str) -> list[int]:
        """Positions of every occurrence of a word, or of a phrase of consecutive words.

        Capitals, spaces, weights `(cat:1.2)` and punctuation around the phrase make no difference. An embedding is
        named as it is written, `embedding:name`; `embedding` alone is each of them. ValueError, with the words there
        are and those that the encoder cannot read, where the phrase is not in the prompt or has no word in it.
        """
        typed, plain = _unescaped(phrase), _unescaped(_WEIGHT.sub(" ", phrase))
        inside = [index for index, character in enumerate(plain) if not aside(character)]
        plain = plain[inside[0] : inside[-1] + 1] if inside else ""
        positions = self._occurrences(plain) or self._occurrences(typed) if plain else []
        if not positions:
            problem, nearest = "is not in" if plain else "names no word of", self._nearest(plain)
            meant = f"did you mean {nearest!r}? " if nearest else ""
            raise ValueError(f"{phrase!r} {problem} the prompt {self.text!r}; {meant}its words are: {self._listed()}")
        return positions

    def _listed(self) -> str:
        """The words once each, without signs; then those that have no name."""
        words = list(dict.fromkeys(word.text for word in self.words if not all(map(aside, word.text))))
        listed = ", ".join(word for word in words if UNKNOWN not in word) or "none"
        if unknown := ", ".join(word for word in words if UNKNOWN in word):
            encoders = ", ".join(stream.name for stream in self.streams)
            listed += f"; not to be named, since {encoders} cannot read all of their characters: {unknown}"
        return listed

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
            for skipped in {0, _signs_before(of_words[first])}:
                atoms, end = of_words[first][skipped:], first + 1
                while end < len(self.words) and len(atoms) < len(wanted):
                    atoms = atoms + of_words[end]
                    end += 1
                left = atoms[len(wanted) :]
                if atoms[: len(wanted)] == wanted and len(left) in (0, _signs_before(of_words[end - 1][::-1])):
                    positions.update(p for word in self.words[first:end] for p in word.positions)
        return sorted(positions)


def prompt_of(text: str, chunks: Sequence[Sequence[str | None]], name: str = "l") -> Prompt:
    """The prompt from the pieces of each of CLIP's chunks, None for an embedding vector without a name.

    A chunk begins with the start token; what follows its first end token is padding, whatever it is padded with.
    """
    tokens: list[Token] = []
    for chunk in chunks:
        end = list(chunk).index(END)
        kinds = ["start", *[""] * (end - 1), "end", *["padding"] * (len(chunk) - end - 1)]
        tokens += map(Token, (piece or "" for piece in chunk), kinds)
    return Prompt(text, (Stream(name, tuple(tokens)),))


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


def _signs_before(atoms: list[str]) -> int:
    """How many signs share a token with the letters after them."""
    letters = (index for index, atom in enumerate(atoms) if not all(map(aside, atom)))
    return next(letters, 0)


def _unescaped(phrase: str) -> str:
    return phrase.replace(r"\(", "(").replace(r"\)", ")")


def aside(character: str) -> bool:
    """Whether a character around a phrase does not belong to it: a space or punctuation."""
    return character.isspace() or character in string.punctuation or unicodedata.category(character).startswith("P")
