"""Four processes that save inversions under one prefix at the same time, through the node, on the real host.

`python tests/saving_at_once.py FOLDER ROUNDS` prints for each round how many of the 40 inversions can be loaded
afterwards, and how many files were not whole when a reader found them while the others saved.
"""

import os
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab.package import load_steer  # noqa: E402

load_steer()
from steer.lab.comfy.find import find_host, load_host  # noqa: E402

load_host(find_host())

import folder_paths  # noqa: E402
from steer.files import inversion_file  # noqa: E402
from steer.nodes.inversion_file import SteerSaveInversion, inversion_files  # noqa: E402
from steer.tests.test_inversion_file import inversion_of  # noqa: E402

PROCESSES, SAVES = 4, 10


def inversion_number(number: int):
    """An inversion that can be told from others by its first sigma."""
    inversion = inversion_of()
    return replace(inversion, sigmas=(100.0 + number, *inversion.sigmas[1:]))


def save_all(start, process: int) -> None:
    inversions = [inversion_number(process * SAVES + save) for save in range(SAVES)]
    start.wait()
    for inversion in inversions:
        SteerSaveInversion.execute(inversion, "steer/inversion")


def found(output: Path) -> list:
    """The numbers of the inversions that can be loaded now, and None for each file that is not whole."""
    numbers = []
    for name in inversion_files():
        try:
            numbers.append(inversion_file.load(output / name.removesuffix(" [output]"))[0].sigmas[0] - 100.0)
        except ValueError:
            numbers.append(None)
    return numbers


def one_round(output: Path) -> tuple[int, int]:
    """(inversions that can be loaded afterwards, files that were not whole while the others saved)."""
    output.mkdir(parents=True)
    folder_paths.set_output_directory(str(output))
    context, broken = get_context("fork"), 0
    start = context.Barrier(PROCESSES + 1)
    processes = [context.Process(target=save_all, args=(start, index)) for index in range(PROCESSES)]
    for process in processes:
        process.start()
    start.wait()
    while any(process.is_alive() for process in processes):
        broken += found(output).count(None)
    failed = sum(process.exitcode != 0 for process in processes)
    left = [name for name in os.listdir(output / "steer") if not name.endswith(".safetensors")]
    assert not failed and not left, f"{failed} processes failed, {left} is left"
    return len(set(found(output))), broken


if __name__ == "__main__":
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    (folder / "none").mkdir(parents=True)
    folder_paths.set_input_directory(str(folder / "none"))
    for index in range(rounds):
        print(*one_round(folder / str(index)), flush=True)
