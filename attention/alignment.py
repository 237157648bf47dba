"""Which token of one prompt became which of another (Hertz et al. 2022, arXiv:2208.01626, section 3.2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .tokens import START, Prompt, Word

MAPPINGS = ("auto", "replace", "refine")


def mapper(source: Prompt, target: Prompt, mapping: str) -> tuple[Tensor, Tensor]:
    """(source, target) matrix M and (target,) kept, float32, of Hertz et al. 2022 (arXiv:2208.01626), section 3.2.

    `A' = A_source M` for the tokens that are kept (1); the others (0) have the target's own attention, and a column of
    zeros in M.
    - `replace`: word for word. All is kept and every row sums to 1, so that edited attention sums to 1.
    - `refine`: the words in common; what was added is not kept.
    - `auto`: `replace` where the numbers of words (punctuation counts) are equal, else `refine`.

    Embedding vectors without a name are all taken for the same. ValueError for any other mapping, and for `replace`
    where the numbers differ.
    """
    if chosen(source, target, mapping) == "refine":
        matrix = _refined(source, target)
        return matrix, matrix.sum(0)
    return _replaced(source, target), torch.ones(target.length)


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


def _replaced(source: Prompt, target: Prompt) -> Tensor:
    """Words by their number, evenly over the tokens of the other where they differ in length; no row is lost."""
    matrix = torch.zeros(source.length, target.length)
    for ours, theirs in zip(source.words, target.words, strict=True):
        if len(ours.positions) == len(theirs.positions):
            matrix[list(ours.positions), list(theirs.positions)] = 1.0
        else:
            matrix[torch.tensor(ours.positions).unsqueeze(1), list(theirs.positions)] = 1.0 / len(theirs.positions)
    of_target = _specials(target)
    places = {name: position for chunk in of_target for name, position in chunk.items()}
    for number, chunk in enumerate(_specials(source)):
        there = of_target[min(number, len(of_target) - 1)]
        padding = [position for (kind, _), position in there.items() if kind == "padding"]
        rest = padding or [position for (kind, _), position in there.items() if kind == "end"]
        for name, position in chunk.items():
            columns = [places[name]] if name in places else rest
            matrix[position, columns] = 1.0 / len(columns)
    return matrix


def _refined(source: Prompt, target: Prompt) -> Tensor:
    """One 1 per column at most: aligned tokens, then whole words that were moved, and the special tokens of both."""
    ours, theirs = ([p for word in prompt.words for p in word.positions] for prompt in (source, target))
    aligned = _aligned([source.tokens[p].piece for p in ours], [target.tokens[p].piece for p in theirs])
    pairs = {theirs[j]: ours[i] for i, j in aligned}
    used = set(pairs.values())
    left = [word for word in source.words if used.isdisjoint(word.positions)]
    for word in target.words:
        if pairs.keys().isdisjoint(word.positions):
            same = next((w for w in left if _pieces(source, w) == _pieces(target, word)), None)
            if same:
                left.remove(same)
                pairs.update(zip(word.positions, same.positions, strict=True))
    places = {name: position for chunk in _specials(source) for name, position in chunk.items()}
    for chunk in _specials(target):
        pairs.update((position, places[name]) for name, position in chunk.items() if name in places)
    matrix = torch.zeros(source.length, target.length)
    matrix[list(pairs.values()), list(pairs.keys())] = 1.0
    return matrix


def _aligned(x: list[str], y: list[str]) -> Iterator[tuple[int, int]]:
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


def _specials(prompt: Prompt) -> list[dict[tuple[str, int], int]]:
    """Per chunk, positions of the special tokens by what corresponds: a start or end by chunk, padding by place."""
    chunks: list[dict[tuple[str, int], int]] = []
    for position, token in enumerate(prompt.tokens):
        if token.special and token.piece == START:
            chunks.append({("start", len(chunks)): position})
        elif token.special:
            end = ("end", len(chunks) - 1)
            chunks[-1][("padding", position) if end in chunks[-1] else end] = position
    return chunks


def _pieces(prompt: Prompt, word: Word) -> list[str]:
    return [prompt.tokens[position].piece for position in word.positions]
