"""Measures the ControlNet, loaded by the host's stock node: are the objects where its control picture has them?"""

from ...weights import CONTROLNET
from ...world.control_pictures import outlines
from ..checks import check_told, count


def main(argv: list[str]) -> None:
    """The command line."""
    check_told(CONTROLNET, outlines, count(argv, "controlnet.check", __doc__))
