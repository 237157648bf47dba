"""What the tests of all nodes take from each method's own: three dictionaries by node id in tests/host/test_STEM.py.

- `ORACLE`: (what it shows, for docs/families.md; a function of a `families.Family` that fails unless it holds there).
  `oracles.py` has what oracles share.
- `CHECK`: (a function of (world, given, run, output) that fails unless the output is right for what was given; the
  names of what else it wants in `run`, see `fuzz_inputs.RUNNING`). `checks.py` has what checks share.
- `USUAL`: by input, the values that `fuzz_inputs.py` draws as usual ones: for each text, for numbers other than the
  default and the bounds, and for names of files.
"""

from functools import cache
from importlib import import_module

from ..nodes import STEMS


@cache
def collected(name: str) -> dict:
    """One of the three, of all methods. ValueError where two of them speak of the same node."""
    entries: dict = {}
    for stem in STEMS:
        new = getattr(import_module(f"steer.tests.host.test_{stem}"), name, {})
        if both := entries.keys() & new.keys():
            raise ValueError(f"{name} of tests/host/test_{stem}.py has {', '.join(both)} once more")
        entries |= new
    return entries
