"""What an edit of attention is to the hook, and how edits of one conditioning chain."""

from typing import NamedTuple

from ....attention.core import Attention, Site

EDITS, SITES, KEY = "steer_edits", "steer_sites", "steer"


class Transform:
    """An edit as the hook calls it. `acts` decides whether a layer is touched at all in a model call."""

    looks = False
    """Changes nothing, and comes after all that do."""

    def acts(self, cross: bool, sigma: float) -> bool:
        raise NotImplementedError

    def __call__(self, rows: list[Attention], site: Site) -> list[Attention]:
        """The rows of one conditioning, in parts that follow each other; the parts may be split further.

        The very list that was given means that nothing changes.
        """
        raise NotImplementedError


class Edits(NamedTuple):
    """What is done to the rows of one conditioning, in order; `tokens` is the length of its own context."""

    transforms: tuple[Transform, ...]
    tokens: int


def edits_of(conds: list[dict], *transforms: Transform) -> dict:
    """The same edits for each of these processed conditionings."""
    return {cond["uuid"]: Edits(transforms, cond["cross_attn"].shape[1]) for cond in conds}
