"""A part of a run, as the noise levels it lasts for."""

from dataclasses import dataclass
from math import inf, nextafter


@dataclass(frozen=True)
class Window:
    """The levels from `highest` down to `lowest`, both included; none at all where `highest` is below `lowest`.

    A window that stops at a share of the run is made by `until`, which leaves that level itself out: so stopping at
    share 0, the run's beginning, means not to begin.
    """

    highest: float = inf
    lowest: float = 0.0

    @classmethod
    def until(cls, end: float, highest: float = inf) -> "Window":
        """From `highest` down to, but without, the level `end`."""
        return cls(highest, nextafter(end, inf))

    def __contains__(self, sigma: float) -> bool:
        return self.lowest <= sigma <= self.highest
