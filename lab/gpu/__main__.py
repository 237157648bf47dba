"""`python -m lab.gpu pack` on a machine with a network, `python -m lab.gpu run` on one with a GPU."""

import argparse
import sys
from pathlib import Path

from ..package import ROOT
from . import pack, run


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help=pack.__doc__.splitlines()[0])
    packing.add_argument("--python", default="3.12", help="of the machine with the GPU (%(default)s)")
    packing.add_argument("--platform", default="manylinux_2_28_x86_64", help="its wheels (%(default)s)")
    packing.add_argument("--have", type=Path, metavar="FILE", help="what it has, as `pip freeze` says: left out")
    running = commands.add_parser("run", help=run.__doc__.splitlines()[0])
    running.add_argument("parts", nargs="*", metavar="PART", help=f"all when none is named: {', '.join(run.PARTS)}")
    running.add_argument("--device", choices=("gpu", "cuda", "cpu"), default="gpu", help="cpu: small models")
    running.add_argument("--out", type=Path, default=ROOT / ".gpu" / "out", help="where gpu.md is written")
    running.add_argument("--seconds", type=float, default=570, help="no part goes on for longer (%(default)s)")
    wanted = parser.parse_args(argv)
    try:
        if wanted.command == "pack":
            return pack.main(wanted.python, wanted.platform, wanted.have)
        return run.main(wanted.parts, wanted.device, wanted.out, wanted.seconds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
