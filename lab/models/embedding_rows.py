"""Embedding tables in files: only the rows in use, and which they are.

CLIP's vocabulary has 49408 tokens, of which the captions use 24. A file has the rows of those under the table's name,
and beside it `token_embedding.rows`, their places (n,). All other rows are zero.
"""

from torch import Tensor

VOCABULARY = 49408
TABLE, ROWS = "token_embedding.weight", "token_embedding.rows"


def expanded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with whole tables (VOCABULARY, width) and without their places."""
    whole = dict(state)
    for places in [key for key in state if key.endswith(ROWS)]:
        table = places.removesuffix(ROWS) + TABLE
        rows = state[table]
        whole[table] = rows.new_zeros(VOCABULARY, rows.shape[1]).index_copy(0, whole.pop(places), rows)
    return whole
