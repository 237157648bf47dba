"""The solver of the Poisson blend against SciPy's own and OpenCV's seamless cloning, on masks of several sizes."""

from importlib.util import find_spec

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import splu

from ..lab.world.metrics import markdown_table
from ..pictures.poisson_blend import System, poisson_blend
from .background import timed

PROBLEMS = ((256, 0.3), (512, 0.3), (1024, 0.3), (1024, 0.95))  # side in pixels, share that is masked
OPENCV = find_spec("cv2") is not None


def run() -> str:
    rows = []
    for side, share in PROBLEMS:
        source, edited, inside = problem(side, share)
        expected = None
        for name, method in METHODS.items():
            blended, seconds, memory = timed(method, source, edited, inside)
            expected = blended if expected is None else expected
            error = np.abs(blended - expected)[inside].max() * 255
            outside = np.abs(blended - source)[~inside].max() * 255
            rows.append(
                {
                    "mask": f"{side}x{side}, {100 * share:.0f}%", "pixels": int(inside.sum()), "solver": name,
                    "seconds": f"{seconds:.2f}", "peak MiB": f"{memory:.0f}",
                    "error": f"{error:.2g}", "changed outside": f"{outside:.2g}",
                }
            )  # fmt: skip
    return f"{TEXT}\n\n{markdown_table(rows)}\n{CONCLUSION}"


TEXT = """# Poisson blend

Three channels of a smooth random picture blended into another one inside random blobs; pictures of 8 bits in, since
OpenCV takes no others. Error: the largest difference inside the mask from SciPy's direct solution, of 255. Changed
outside: the largest difference from the source there, of 255. Peak: by how much the process's memory rose."""

CONCLUSION = """\
The node uses SciPy's sparse matrices with a multigrid cycle of our own. SciPy's direct solver is as exact, and takes
longer and more memory as masks grow. OpenCV is the fastest and does not solve this: it works in 8 bits and over the
mask's whole bounding box, so that pixels outside the mask change, and it is not among ComfyUI's requirements (its rows
are there when it is installed where this is run)."""


def problem(side: int, share: float):
    """(source, edited, inside): blobs that stay one pixel off the border, which OpenCV cannot reach."""
    rng = np.random.default_rng(side)
    source, edited = (gaussian_filter(rng.random((side, side, 3)), (3, 3, 0)) for _ in range(2))
    field = gaussian_filter(rng.standard_normal((side, side)), side / 20)
    inside = field > np.quantile(field, 1 - share)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    return (source * 255).round() / 255, (edited * 255).round() / 255, inside


def direct(source, edited, inside):
    system = System.of(inside)
    options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
    correction = splu(system.matrix.tocsc(), **options).solve(system.boundary_sums(source - edited))
    blended = source.copy()
    blended[inside] = (edited[inside] + correction).clip(0, 1)
    return blended


def ours(source, edited, inside):
    return poisson_blend(*map(torch.from_numpy, (source, edited, inside))).numpy()


def opencv(source, edited, inside):
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    rows, columns = np.nonzero(inside)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    middle = tuple(int(part.start + (part.stop - part.start) // 2) for part in reversed(box))
    given, onto, mask = ((255 * each).round().astype(np.uint8) for each in (edited[box], source, inside[box]))
    return cv2.seamlessClone(given, onto, mask, middle, cv2.NORMAL_CLONE) / 255


METHODS = {"SciPy, direct (SuperLU)": direct, "this package": ours}
if OPENCV:
    METHODS["OpenCV, seamlessClone"] = opencv
