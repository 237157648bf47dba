"""A part of a run, as the noise levels it lasts for."""

from dataclasses import dataclass
from math import inf, nextafter


@dataclass(frozen=True)
class Window:
    """The levels from `first` down to `last`, both of them in it; no level at all where `first` is below `last`.

    What stops at a share of the run is made by `until`: that level itself is then left out, so that stopping at 0, the
    run's beginning, means never.
    """

    first: float = inf
    last: float = 0.0

    @classmethod
    def until(cls, last: float, first: float = inf) -> "Window":
        """From `first` down to, but without, the level `last`."""
        return cls(first, nextafter(last, inf))

    def __contains__(self, sigma: float) -> bool:
        return self.last <= sigma <= self.first
