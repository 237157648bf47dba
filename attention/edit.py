"""What works on attention layers: edits that change them, and looks that do not."""

from typing import Protocol

from .core import Attention
from .layers import Site


class AttentionEdit(Protocol):
    """Changes the attention of the rows of one conditioning."""

    def acts(self, kind: str, sigma: float) -> bool:
        """Whether it may change a layer of this kind (`Site.kind`) in a call at this level."""
        ...

    def apply(self, rows: list[Attention], site: Site) -> list[Attention] | None:
        """The rows, in parts that follow each other, and may be split further; None where nothing changes."""


class AttentionLook(Protocol):
    """Reads the attention of the rows of one conditioning, after all edits."""

    def acts(self, kind: str, sigma: float) -> bool:
        """Whether it wants to see a layer of this kind in a call at this level."""
        ...

    def see(self, rows: list[Attention], site: Site) -> None:
        """Called once for each layer and call, with the rows in parts that follow each other."""
        ...
