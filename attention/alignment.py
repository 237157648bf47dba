"""Which token of one prompt became which of another (Hertz et al. 2022, arXiv:2208.01626, section 3.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .spelling import CLIP
from .tokens import Prompt

MAPPINGS = ("auto", "replace", "refine")
Key = str | tuple[str, ...]
"""What tells whether two tokens or words are the same."""


def mapper(source: Prompt, target: Prompt, mapping: str) -> tuple[Tensor, Tensor]:
    """(source, target) matrix M and (target,) kept, float32, of Hertz et al. 2022 (arXiv:2208.01626), section 3.2.

    `A' = A_source M` for the tokens that are kept (1); the others (0) have the target's own attention, and a column of
    zeros in M.
    - `replace`: word for word. All is kept and every row sums to 1, so that edited attention sums to 1.
    - `refine`: the words in common; what was added is not kept.
    - `auto`: `replace` where the numbers of words (punctuation counts) are equal, else `refine`.

    Prompts of several streams are mapped stream by stream. Embedding vectors without a name are all taken for the same.
    ValueError for any other mapping, and for `replace` where the numbers differ.
    """
    refine = chosen(source, target, mapping) == "refine"
    matrix = torch.zeros(source.length, target.length)
    for number in range(len(target.streams)):
        (_refine if refine else _replace)(matrix, _Part(source, number), _Part(target, number))
    return matrix, (matrix.sum(0) > 0).float() if refine else torch.ones(target.length)


def chosen(source: Prompt, target: Prompt, mapping: str) -> str:
    """`replace` or `refine`: which of them `mapper` takes. Raises its ValueErrors."""
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping is {mapping!r}; it has to be one of {', '.join(MAPPINGS)}")
    counts = len(source.words), len(target.words)
    if mapping == "replace" and counts[0] != counts[1]:
        raise ValueError(
            f"replace needs as many words in both prompts, punctuation included: {source.text!r} has {counts[0]}, "
            f"{target.text!r} has {counts[1]}; use refine for words added or taken away"
        )
    return "refine" if mapping == "refine" or counts[0] != counts[1] else "replace"


def word_changes(source: Prompt, target: Prompt, matrix: Tensor) -> tuple[str, str]:
    """What the matrix (source, target) of `mapper` does to the words: those that change, and those that stay.

    `red > blue` became another, `+ big` is new, `- old` is gone. Every word of both prompts is in one of the two.
    """
    changed: list[str] = []
    added: list[str] = []
    kept: list[str] = []
    used: set[int] = set()
    for word in target.words:
        sources = [i for i, of in enumerate(source.words) if matrix[list(of.positions)][:, list(word.positions)].any()]
        before = " ".join(source.words[i].text for i in sources)
        used.update(sources)
        if not sources:
            added.append(f"+ {word.text}")
        elif before == word.text:
            kept.append(word.text)
        else:
            changed.append(f"{before} > {word.text}")
    gone = [f"- {word.text}" for i, word in enumerate(source.words) if i not in used]
    return ", ".join([*changed, *added, *gone]), ", ".join(kept)


class _Part:
    """One stream of a prompt; positions are the prompt's."""

    def __init__(self, prompt: Prompt, number: int):
        self.prompt, self.span, self.is_clip = prompt, prompt.spans[number], prompt.streams[number].spelling == CLIP
        self.words = self._tokens_of_words()
        self.chunks = self._specials()

    def keyed(self) -> list[tuple[Key, list[int]]]:
        """The words in this stream, with what tells whether two are the same."""
        texts = [word.text for word in self.prompt.words]
        words = zip(texts, self.words, strict=True)
        return [(tuple(self._pieces(at)) if self.is_clip else text, at) for text, at in words if at]

    def units(self) -> list[tuple[Key, list[int]]]:
        """What is aligned: the tokens of CLIP; elsewhere words, since the same one may be split in two ways."""
        if not self.is_clip:
            return self.keyed()
        return [
            (piece, [at]) for _, tokens in self.keyed() for piece, at in zip(self._pieces(tokens), tokens, strict=True)
        ]

    def _pieces(self, positions: list[int]) -> list[str]:
        return [self.prompt.tokens[position].piece for position in positions]

    def _tokens_of_words(self) -> list[list[int]]:
        """The positions of each word; a token that spells a space alone goes with the word after it."""
        owners = {
            at: number for number, word in enumerate(self.prompt.words) for at in word.positions if at in self.span
        }
        words: list[list[int]] = [[] for _ in self.prompt.words]
        owner = owners[max(owners)] if owners else None
        for position in reversed(self.span):
            if owner is not None and not self.prompt.tokens[position].special:
                owner = owners.get(position, owner)
                words[owner].insert(0, position)
        return words

    def _specials(self) -> list[dict[tuple[str, int], int]]:
        """Per chunk, positions of the special tokens by what corresponds: starts, ends in order, padding by place."""
        chunks: list[dict[tuple[str, int], int]] = [{}]
        counts = {"start": 0, "end": 0}
        for place, position in enumerate(self.span):
            kind = self.prompt.tokens[position].kind
            if kind == "padding":
                chunks[-1][kind, place] = position
            elif kind:
                if kind == "start" and any(before == "end" for before, _ in chunks[-1]):
                    chunks.append({})
                chunks[-1][kind, counts[kind]] = position
                counts[kind] += 1
        return chunks

    def rest(self, chunk: int) -> list[int]:
        """Where what has no counterpart goes: a chunk's padding, else its end."""
        for wanted in ("padding", "end", "start"):
            places = [at for (kind, _), at in self.chunks[chunk].items() if kind == wanted]
            if places:
                return places
        return []


def _replace(matrix: Tensor, source: _Part, target: _Part) -> None:
    """Words by their number, evenly over the tokens of the other where they differ in length; no row is lost."""
    last = len(target.chunks) - 1
    for ours, theirs in zip(source.words, target.words, strict=True):
        _spread(matrix, ours, theirs or target.rest(last))
    places = {name: position for chunk in target.chunks for name, position in chunk.items()}
    for number, chunk in enumerate(source.chunks):
        rest = target.rest(min(number, last))
        for name, position in chunk.items():
            _spread(matrix, [position], [places[name]] if name in places else rest)


def _refine(matrix: Tensor, source: _Part, target: _Part) -> None:
    """Aligned tokens or words, then whole words that were moved, and the special tokens of both."""
    ours, theirs = source.units(), target.units()
    pairs = [(ours[i][1], theirs[j][1]) for i, j in _aligned([key for key, _ in ours], [key for key, _ in theirs])]
    used = {position for one, _ in pairs for position in one}
    matched = {position for _, other in pairs for position in other}
    left = [(key, word) for key, word in source.keyed() if used.isdisjoint(word)]
    for key, word in target.keyed():
        same = next((one for one in left if one[0] == key), None) if matched.isdisjoint(word) else None
        if same:
            left.remove(same)
            pairs.append((same[1], word))
    places = {name: position for chunk in source.chunks for name, position in chunk.items()}
    specials = (item for chunk in target.chunks for item in chunk.items())
    pairs += [([places[name]], [position]) for name, position in specials if name in places]
    for one, other in pairs:
        _spread(matrix, one, other)


def _spread(matrix: Tensor, ours: list[int], theirs: list[int]) -> None:
    """One to one where there are as many; else each evenly over all of the others."""
    if len(ours) == len(theirs):
        matrix[ours, theirs] = 1.0
    elif ours and theirs:
        matrix[torch.tensor(ours).unsqueeze(1), theirs] = 1.0 / len(theirs)


def _aligned(x: list[Key], y: list[Key]) -> Iterator[tuple[int, int]]:
    """Needleman-Wunsch: the pairs of equal pieces, from the last. Gap 0, match 1, mismatch -1: ties left, then up."""
    scores = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            diagonal = scores[i][j] + (1 if a == b else -1)
            scores[i + 1][j + 1] = max(scores[i + 1][j], scores[i][j + 1], diagonal)
    i, j = len(x), len(y)
    while i and j:
        if scores[i][j] == scores[i][j - 1]:
            j -= 1
        elif scores[i][j] == scores[i - 1][j]:
            i -= 1
        else:  # two gaps cost nothing, so this is never a mismatch
            i, j = i - 1, j - 1
            yield i, j
