"""Embedding tables in files: only the rows in use, and which they are.

CLIP's vocabulary has 49408 tokens and T5's 32128, of which the captions use 24 and 26. A file has the rows of those
under the table's name, and beside it their places (n,): `token_embedding.rows` beside `token_embedding.weight`, in T5
`shared.rows`. All other rows are zero.
"""

from torch import Tensor

VOCABULARY, T5_VOCABULARY = 49408, 32128
TABLE, ROWS = "token_embedding.weight", "token_embedding.rows"
T5_TABLE, T5_ROWS = "shared.weight", "shared.rows"
TABLES = {ROWS: (TABLE, VOCABULARY), T5_ROWS: (T5_TABLE, T5_VOCABULARY)}


def expanded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with whole tables (vocabulary, width) and without their places."""
    whole = dict(state)
    for rows_name, (table_name, vocabulary) in TABLES.items():
        for places in [key for key in state if key.endswith(rows_name)]:
            table = places.removesuffix(rows_name) + table_name
            rows = state[table]
            whole[table] = rows.new_zeros(vocabulary, rows.shape[1]).index_copy(0, whole.pop(places), rows)
    return whole
