"""Numbers and windows for words of a prompt, as people write them: `fluffy: 2, old: -1`."""

import re
from collections.abc import Iterator
from math import isfinite

import torch
from torch import Tensor

from .tokens import Prompt, aside


def word_values(prompt: Prompt, text: str) -> Tensor:
    """(length,) float32 from `fluffy: 2, old: -1`: the numbers at their words' tokens, 1 elsewhere; the last one holds.

    ValueError for what `numbers` refuses, and for a word that is not there.
    """
    values = torch.ones(prompt.length)
    for phrase, number in numbers(text):
        values[prompt.positions(phrase)] = number
    return values


def word_windows(prompt: Prompt, text: str) -> dict[int, tuple[float, float]]:
    """Position to (start, end) in shares of the run, from `lion: 0.4, jungle: 0.2-0.6`; 0.4 is 0 to 0.4.

    ValueError for what `windows` refuses, and for a word that is not there.
    """
    by_position: dict[int, tuple[float, float]] = {}
    for phrase, window in windows(text):
        by_position.update(dict.fromkeys(prompt.positions(phrase), window))
    return by_position


def numbers(text: str) -> list[tuple[str, float]]:
    """(phrase, number) of each entry of an equalizer; ValueError for one without a phrase or a finite number."""
    entries: list[tuple[str, float]] = []
    for phrase, value in list(_entries(text)):  # a fault of form in any entry is named first
        number = _number(value)
        if number is None:
            raise ValueError(f"{value!r} for {phrase!r} is not a number; write `word: number`, as in `fluffy: 2`")
        entries.append((phrase, number))
    return entries


def windows(text: str) -> list[tuple[str, tuple[float, float]]]:
    """(phrase, (start, end)) of each entry; ValueError for one without a phrase, or with a window not within 0..1."""
    entries: list[tuple[str, tuple[float, float]]] = []
    for phrase, value in _entries(text):
        ends = [_number(part) for part in value.split("-")]
        start, end = [0.0, *ends][-2:]
        if len(ends) > 2 or start is None or end is None or not 0.0 <= start < end <= 1.0:
            raise ValueError(
                f"{value!r} for {phrase!r} is not a window of the run: write its end, as in `lion: 0.4`, or start-end, "
                "as in `lion: 0.2-0.6`, within 0 to 1 and the start before the end"
            )
        entries.append((phrase, (start, end)))
    return entries


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(phrase, value) of each `phrase: value`, separated by commas, semicolons or lines."""
    for entry in filter(None, map(str.strip, re.split(r"[,;\n]", text))):
        phrase, colon, value = entry.rpartition(":")
        if not colon:
            raise ValueError(f"{entry!r} has no colon; write `word: number`, and a comma between two of them")
        if all(map(aside, phrase)):
            raise ValueError(f"{entry!r} names no word; write `word: number`, as in `fluffy: 2`")
        yield phrase.strip(), value.strip()


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None
