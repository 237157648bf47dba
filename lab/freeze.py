"""What every example workflow but those that train makes, to the last bit: the judge of a change of no picture.

    python -m lab.freeze digests.json                  write what this checkout makes on the host that is found
    python -m lab.freeze --against digests.json        make it again and name what is another picture; exit code 1

Whoever compares two checkouts does so with the same host, environment and number of threads (OMP_NUM_THREADS=1).
"""

import argparse
import json
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .comfy.server import Server
from .demo.runner import SHAPES_SIZE, TRAINING, lacking, load_workflow, workflow_names
from .world.inputs import write_inputs


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.freeze", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="where the digests are written, or with --against read")
    parser.add_argument("--against", action="store_true", help="compare with the file")
    parser.add_argument("--workflow", metavar="NAME", action="append", help="only this one; may be repeated")
    wanted = parser.parse_args(argv)
    names = wanted.workflow or [name for name in workflow_names() if name not in TRAINING]
    made = digests(names)
    if not wanted.against:
        wanted.file.write_text(json.dumps(made, indent=1) + "\n")
        return 0
    frozen = {key: value for key, value in json.loads(wanted.file.read_text()).items() if key.split("/")[0] in names}
    changed = sorted(key for key in frozen.keys() | made.keys() if frozen.get(key) != made.get(key))
    print("\n".join(f"another picture: {key}" for key in changed) or f"all {len(made)} pictures are the same")
    return 1 if changed else 0


def digests(names: list[str]) -> dict[str, str]:
    """A digest of each picture by `workflow/node/number`, run one after the other on a host of their own."""
    found, counts = {}, Counter()
    with Server() as server:
        write_inputs(server.input_folder, SHAPES_SIZE)
        there = server.object_info()
        for name in tqdm([name for name in names if not lacking(load_workflow(name), there)]):
            pictures = server.images(server.run(load_workflow(name), timeout=1800))
            for node, picture in pictures:  # the nodes in any order, and each one's pictures in its own
                found[f"{name}/{node}/{counts[name, node]}"] = digest(picture)
                counts[name, node] += 1
    return found


def digest(picture: Image.Image) -> str:
    """SHA-256 of a picture's values."""
    return sha256(np.asarray(picture).tobytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
