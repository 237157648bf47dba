"""The host takes its flags in this process as on its command line."""

import os
import subprocess
import sys

from steer.lab.comfy.find import FLAGS
from steer.lab.package import ROOT

CODE = """
from lab.package import load_steer; load_steer()
from steer.lab.comfy.find import find_host, load_host
load_host(find_host(), ["--fp32-vae"])
from comfy.cli_args import args
import sys
print(args.fp32_vae, args.use_split_cross_attention, args.fp32_unet, sys.argv)
"""


def test_those_given_and_those_of_the_environment():
    environment = {**os.environ, FLAGS: "--use-split-cross-attention"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("True True False ['-c']"), done.stderr
