"""`python -m lab.demo`: run the example workflows through the real ComfyUI and leave pictures."""

import sys

from ..package import load_steer

load_steer()

if __name__ == "__main__":
    from steer.lab.demo.runner import main

    sys.exit(main())
