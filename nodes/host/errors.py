"""The name of a node on its errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

NAMED = re.compile(r"Steer\w+: ")
"""How an error begins that says already which node it is of."""


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Puts the name of a node, or of one of its inputs, before ValueErrors that do not begin with a node's."""
    try:
        yield
    except ValueError as error:
        if NAMED.match(str(error)):
            raise
        raise ValueError(f"{name}: {error}") from error
