"""Inputs that recur in schemas, each written once."""

from comfy_api.latest import io

CROSS_END = "How long, as a share of the run, words keep the source's places. Lower frees the edit."
SELF_END = "How long the picture keeps the source's layout. Lower it where shapes are to change."


def share(name: str, default: float, tooltip: str, step: float = 0.01, **more) -> io.Input:
    """A number from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=step, tooltip=tooltip, **more)


def scale(name: str, default: float, tooltip: str) -> io.Input:
    """A guidance scale."""
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def cross_end(tooltip: str = CROSS_END, **more) -> io.Input:
    """Until when cross-attention is the source's."""
    return share("cross_end", 0.8, tooltip, **more)


def self_end(tooltip: str = SELF_END, **more) -> io.Input:
    """Until when self-attention is the source's."""
    return share("self_end", 0.4, tooltip, **more)


def percent(name: str, default: float, tooltip: str) -> io.Input:
    """An end of an interval of the run."""
    return share(name, default, tooltip, step=0.001)


def whole(name: str, default: int, most: int, tooltip: str, least: int = 0) -> io.Input:
    """A whole number."""
    return io.Int.Input(name, default=default, min=least, max=most, tooltip=tooltip)
