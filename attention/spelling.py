"""What the pieces of a text encoder's vocabulary spell. So far CLIP's: `</w>` ends a word.

Another vocabulary is another pair of `continues` and `spelled`.
"""

from functools import cache

WORD_END = "</w>"
EMBEDDING = "embedding:"


def continues(before: str, piece: str) -> bool:
    """Whether a piece belongs to the word of the piece before."""
    if not before or not piece:  # embedding vectors without a name
        return before == piece
    return not before.endswith(WORD_END) and before.startswith(EMBEDDING) == piece.startswith(EMBEDDING)


def spelled(pieces: list[str]) -> str:
    """What a word's pieces spell: the vocabulary writes each byte of UTF-8 as one printable character."""
    if not pieces[0]:
        return EMBEDDING.removesuffix(":")
    if pieces[0].startswith(EMBEDDING):
        return pieces[0].removesuffix(WORD_END)
    text = bytes(_bytes()[c] for c in "".join(pieces).removesuffix(WORD_END))
    return text.decode("utf-8", errors="replace")


@cache
def _bytes() -> dict[str, int]:
    """GPT-2's table: bytes that print stand for themselves, the others in order for the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
