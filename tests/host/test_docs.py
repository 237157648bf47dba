"""`make docs` would change nothing. The tables that it has tests write are looked at by those, locales by theirs."""

import pytest
from steer.lab.docs import contract, help_inputs, methods


@pytest.mark.parametrize("part", [contract, help_inputs, methods], ids=lambda part: part.__name__.rpartition(".")[2])
def test_make_docs_would_change_nothing(part):
    for path, text in part.files().items():
        assert path.read_text() == text, f"run `make docs`: {path.name} is not what it writes"
