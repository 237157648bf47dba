"""The words the shapes model knows, with their ids in the stock CLIP vocabulary: its tokenizer where no host is.

Each word is one token there. All other rows of the checkpoint's embedding table are zero, and not in its file.
"""

TOKENS = 77
START, END = 49406, 49407  # END also pads
IDS = {
    "a": 320, "on": 525, "background": 5994, "left": 1823, "of": 539, "above": 4348,
    "circle": 7117, "square": 3999, "triangle": 14615, "star": 1565, "cross": 3417, "heart": 1936,
    "red": 736, "green": 1901, "blue": 1746, "yellow": 4481, "purple": 5496, "orange": 4287, "pink": 3360,
    "white": 1579, "black": 1449, "gray": 7048,
}  # fmt: skip


def token_ids(caption: str) -> list[int]:
    """The caption as the text encoder takes it: start, words, padded with END to 77.

    ValueError for a word the model does not know, or for more than 75 words.
    """
    words = caption.lower().split()
    unknown = [word for word in words if word not in IDS]
    if unknown:
        raise ValueError(f"{caption!r}: the shapes model does not know {', '.join(unknown)}; it knows {', '.join(IDS)}")
    if len(words) > TOKENS - 2:
        raise ValueError(f"the caption has {len(words)} words; the text encoder takes {TOKENS - 2}")
    ids = [START, *(IDS[word] for word in words), END]
    return ids + [END] * (TOKENS - len(ids))
