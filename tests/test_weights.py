"""The files of the lab's models: what their table says of them, and what they hold of an embedding table."""

import pytest
import torch
from safetensors.torch import load_file
from steer.lab import weights
from steer.lab.models.embedding_rows import ROWS, TABLE, VOCABULARY, expanded
from steer.lab.world.vocabulary import END, IDS, START


def test_the_table_is_true():
    assert weights.TABLE.read_text() == weights.table(), "run `python -m lab.weights`"


def test_a_whole_table_has_the_rows_at_their_places_and_zeros():
    rows, other = torch.randn(3, 5).half(), torch.randn(2)
    whole = expanded({f"a.{TABLE}": rows, f"a.{ROWS}": torch.tensor([7, 49407, 0]), "other": other})
    assert whole.keys() == {f"a.{TABLE}", "other"} and whole["other"] is other
    expected = torch.zeros(VOCABULARY, 5, dtype=torch.float16)
    expected[7], expected[49407], expected[0] = rows
    assert torch.equal(whole[f"a.{TABLE}"], expected)


def test_what_has_no_rows_is_as_it_came():
    table = torch.randn(4, 2)
    assert expanded({TABLE: table})[TABLE] is table


@pytest.mark.parametrize(("file", "width"), [(weights.CHECKPOINT, 128), (weights.CLIP_TEXT, 64)])
def test_the_rows_of_the_files_are_those_of_the_words(file, width):
    state = load_file(file)
    (places,) = (state[key] for key in state if key.endswith(ROWS))
    assert places.tolist() == sorted([START, END, *IDS.values()])
    (table,) = (value for key, value in expanded(state).items() if key.endswith(TABLE))
    assert table.shape == (VOCABULARY, width)
    assert torch.equal(table.ne(0).any(1).nonzero()[:, 0], places)
