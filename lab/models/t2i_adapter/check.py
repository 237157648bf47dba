"""Measures the T2I-Adapter, loaded by the host's stock node: are the objects where its control picture has them?"""

from ...weights import T2I_ADAPTER
from ...world.control_pictures import silhouettes
from ..checks import check_told, count


def main(argv: list[str]) -> None:
    """The command line."""
    check_told(T2I_ADAPTER, silhouettes, count(argv, "t2i_adapter.check", __doc__))
