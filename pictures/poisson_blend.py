"""Gradient-domain blending (Perez, Gangnet and Blake 2003, doi:10.1145/882262.882269, eq. 7 and 9).

Solved for the correction `h = f - edited`, which is harmonic and given on the boundary: `|N_p| h_p - sum h_q = sum
(source - edited)_q` over the four neighbours, those that are in the picture (a mask at its border has no boundary
there), q masked on the left and not on the right. By conjugate gradients, preconditioned with a multigrid cycle.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# scipy declares no types: its matrices are Any, and what numpy makes of them is annotated

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

Floats = NDArray[np.float64]
Indices = NDArray[np.integer[Any]]
Matrix = Any
"""scipy.sparse.csr_matrix"""

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
COARSEST = 300  # unknowns that a dense inverse is made for
TOLERANCE = 1e-8  # of the solution, in picture values
MOST = 100  # iterations; no mask that was tried took more than ten


def poisson_blend(source: Tensor, edited: Tensor, inside: Tensor) -> Tensor:
    """The source with, inside the mask, the picture that has the edit's gradients and meets the source at the edge.

    Pictures (h, w, channels) in 0..1, `inside` (h, w) of True and False. Where the mask covers the whole picture
    nothing is given at any edge, and the edit is returned as it is. RuntimeError should the solver not get there.
    """
    if not inside.any():
        return source
    if inside.all():
        return edited
    system = System.of(inside.cpu().numpy())
    difference = (source - edited).double().cpu().numpy()
    correction = torch.as_tensor(solve(system, system.boundary_sums(difference))).to(edited.device)
    blended = source.clone()
    blended[inside] = (edited[inside].double() + correction).clamp(0.0, 1.0).to(source.dtype)
    return blended


@dataclass(frozen=True)
class System:
    """The linear equations of a mask: `matrix` (n, n) for its n pixels at (`rows`, `columns`)."""

    matrix: Matrix
    rows: Indices
    columns: Indices
    edge: tuple[Indices, Indices, Indices]
    """Which masked pixel neighbours which (row, column) that is not."""

    @classmethod
    def of(cls, inside: NDArray[np.bool_]) -> "System":
        rows, columns = np.nonzero(inside)
        numbers = numbered(inside)
        degree = np.zeros(len(rows))
        links: list[tuple[Indices, Indices]] = []
        edges: list[tuple[Indices, Indices, Indices]] = []
        for down, right in NEIGHBOURS:
            row, column = rows + down, columns + right
            there = (row >= 0) & (row < inside.shape[0]) & (column >= 0) & (column < inside.shape[1])
            degree += there
            pixel, row, column = np.nonzero(there)[0], row[there], column[there]
            other = numbers[row, column]
            links.append((pixel[other >= 0], other[other >= 0]))
            edges.append((pixel[other < 0], row[other < 0], column[other < 0]))
        ours, theirs = map(np.concatenate, zip(*links, strict=True))
        pixels, row, column = map(np.concatenate, zip(*edges, strict=True))
        adjacent: Matrix = sparse.csr_matrix((np.ones(len(ours)), (ours, theirs)), shape=(len(rows),) * 2)
        matrix: Matrix = sparse.diags(degree)
        return cls((matrix - adjacent).tocsr(), rows, columns, (pixels, row, column))

    def boundary_sums(self, values: Floats) -> Floats:
        """For each masked pixel the sum of `values` (h, w, channels) over its neighbours that are not masked."""
        pixel, row, column = self.edge
        neighbours, count = values[row, column], len(self.rows)
        channels = (neighbours[:, channel] for channel in range(neighbours.shape[1]))
        sums = (cast(Floats, np.bincount(pixel, channel, minlength=count)) for channel in channels)
        return np.stack(list(sums), axis=1)


def numbered(inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The masked pixels' numbers in reading order, -1 elsewhere."""
    numbers = np.full(inside.shape, -1, np.int32)
    numbers[inside] = np.arange(inside.sum(), dtype=np.int32)
    return numbers


def interpolation(rows: Indices, columns: Indices) -> tuple[Matrix, Indices, Indices]:
    """Bilinear, from cells of 2x2 pixels that hold a masked one; with the cells' own rows and columns."""
    cells = np.zeros((rows.max() // 2 + 1, columns.max() // 2 + 1), bool)
    cells[rows // 2, columns // 2] = True
    numbers = numbered(cells)
    entries: list[tuple[Indices, Indices, Floats]] = []

    def near_and_far(index: Indices, size: int) -> Iterator[tuple[Indices, float]]:
        yield index // 2, 0.75
        yield (index // 2 + np.where(index % 2, 1, -1)).clip(0, size - 1), 0.25

    for row, weight in near_and_far(rows, cells.shape[0]):
        for column, other_weight in near_and_far(columns, cells.shape[1]):
            cell = numbers[row, column]
            pixel = np.nonzero(cell >= 0)[0]
            entries.append((pixel, cell[pixel], np.full(len(pixel), weight * other_weight)))
    pixels, cell, weights = map(np.concatenate, zip(*entries, strict=True))
    matrix: Matrix = sparse.csr_matrix((weights, (pixels, cell)), shape=(len(rows), int(cells.sum())))
    rows, columns = np.nonzero(cells)
    return matrix, rows, columns


class Multigrid:
    """One symmetric V-cycle, an approximate inverse of a system's matrix: Galerkin coarsening, two Jacobi sweeps."""

    SWEEPS = (0.5618, 1.3896)  # the damping whose two sweeps do best on the upper three quarters of the spectrum

    def __init__(self, system: System):
        matrix, rows, columns = system.matrix, system.rows, system.columns
        self.levels: list[tuple[Matrix, Floats, Matrix, Matrix]] = []
        while matrix.shape[0] > COARSEST:
            up, rows, columns = interpolation(rows, columns)
            down = up.T.tocsr()
            self.levels.append((matrix, 1.0 / matrix.diagonal()[:, None], up, down))
            matrix = (down @ matrix @ up).tocsr()
        self.coarsest: Floats = np.linalg.pinv(matrix.toarray(), hermitian=True)

    def __call__(self, residual: Floats, level: int = 0) -> Floats:
        if level == len(self.levels):
            return self.coarsest @ residual
        matrix, inverse, up, down = self.levels[level]
        first, second = self.SWEEPS
        x: Floats = first * inverse * residual
        x = x + second * inverse * (residual - matrix @ x)
        x = x + up @ self(down @ (residual - matrix @ x), level + 1)
        x = x + second * inverse * (residual - matrix @ x)
        return x + first * inverse * (residual - matrix @ x)


def solve(system: System, right: Floats) -> Floats:
    """The solution of `matrix x = right`, each column (n, channels) by conjugate gradients of its own."""
    cycle, x, residual = Multigrid(system), np.zeros_like(right), right
    along, product, least, error = np.zeros_like(right), np.ones(1), np.finfo(float).tiny, inf
    for _ in range(MOST):
        step = cycle(residual)  # about the error that is left
        error = np.abs(step).max()
        if error < TOLERANCE:
            return x
        last, product = product, (residual * step).sum(0)
        along = step + product / np.maximum(last, least) * along
        moved: Floats = system.matrix @ along
        length = product / np.maximum((along * moved).sum(0), least)
        x, residual = x + length * along, residual - length * moved
    raise RuntimeError(f"the blending did not converge: an error of {error:g} is left")
