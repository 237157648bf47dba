"""`python -m bench [NAME...]`: runs the benchmarks in the real host and writes each one's table beside its module."""

import sys

from lab.package import load_steer

load_steer()

from steer.bench.runner import main  # noqa: E402  importable only now

sys.exit(main(sys.argv[1:]))
