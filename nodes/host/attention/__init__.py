"""Edits of attention in a run, for every family that is known."""

from .edits import AttentionEdits, check_pairs
from .marked import Mark, with_marked_edits

__all__ = ["AttentionEdits", "Mark", "check_pairs", "with_marked_edits"]
