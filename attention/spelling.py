"""What the pieces of a text encoder's vocabulary spell.

CLIP ends a word with `</w>`. Byte-level vocabularies (Qwen, Llama, Mistral) write a space as `Ġ`, those of
sentencepiece (T5, UMT5, Pile-T5, Gemma) as `▁`; where words end is then read from the text that the pieces spell.
"""

from collections.abc import Container
from functools import cache

WORD_END = "</w>"
EMBEDDING = "embedding:"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What stands for characters that a vocabulary has no piece for (`<unk>`)."""

CLIP, BYTE_LEVEL, SENTENCEPIECE = "CLIP", "byte-level", "sentencepiece"


def spelling_of(vocabulary: Container[str]) -> str | None:
    """Which of the three a vocabulary is of; None for any other."""
    marks = {"the</w>": CLIP, "▁the": SENTENCEPIECE, "Ġthe": BYTE_LEVEL}
    return next((spelling for piece, spelling in marks.items() if piece in vocabulary), None)


def is_embedding(piece: str) -> bool:
    """Whether it stands for an embedding vector, which spells nothing: `embedding:name`, or empty without a name."""
    return not piece or piece.startswith(EMBEDDING)


def spelled_bytes(piece: str, spelling: str) -> bytes:
    """The UTF-8 that a piece of a byte-level or sentencepiece vocabulary spells, spaces included."""
    if spelling == BYTE_LEVEL:
        return b"".join(bytes([_bytes()[c]]) if c in _bytes() else c.encode() for c in piece)
    if piece.startswith("<0x") and len(piece) == 6:
        return bytes([int(piece[3:5], 16)])
    return (UNKNOWN if piece == "<unk>" else piece.replace("▁", " ")).encode()


def continues(before: str, piece: str) -> bool:
    """Whether a piece of CLIP's, or an embedding vector, belongs to the word of the piece before."""
    if not before or not piece:  # embedding vectors without a name
        return before == piece
    return not before.endswith(WORD_END) and before.startswith(EMBEDDING) == piece.startswith(EMBEDDING)


def spelled(pieces: list[str]) -> str:
    """What a word's pieces spell in CLIP: the vocabulary writes each byte of UTF-8 as one printable character."""
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
