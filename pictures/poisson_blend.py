"""Gradient-domain blending (Perez, Gangnet and Blake 2003, doi:10.1145/882262.882269, eq. 7 and 9).

Solved for the correction `h = f - edited`, which is harmonic and given on the boundary: `|N_p| h_p - sum h_q = sum
(source - edited)_q` over the four neighbours, those that are in the picture (a mask at its border has no boundary
there), q masked on the left and not on the right. By conjugate gradients, preconditioned with a multigrid cycle.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

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
    correction = torch.from_numpy(solve(system, system.boundary_sums(difference))).to(edited.device)
    blended = source.clone()
    blended[inside] = (edited[inside].double() + correction).clamp(0.0, 1.0).to(source.dtype)
    return blended


@dataclass(frozen=True)
class System:
    """The linear equations of a mask: `matrix` (n, n) for its n pixels at (`rows`, `columns`)."""

    matrix: sparse.csr_matrix
    rows: np.ndarray
    columns: np.ndarray
    edge: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Which masked pixel neighbours which (row, column) that is not."""

    @classmethod
    def of(cls, inside: np.ndarray):
        rows, columns = np.nonzero(inside)
        numbers = numbered(inside)
        degree, links, edge = np.zeros(len(rows)), [], []
        for down, right in NEIGHBOURS:
            row, column = rows + down, columns + right
            there = (row >= 0) & (row < inside.shape[0]) & (column >= 0) & (column < inside.shape[1])
            degree += there
            pixel, row, column = np.nonzero(there)[0], row[there], column[there]
            other = numbers[row, column]
            links.append((pixel[other >= 0], other[other >= 0]))
            edge.append((pixel[other < 0], row[other < 0], column[other < 0]))
        pairs, edge = (tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for parts in (links, edge))
        adjacent = sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(len(rows),) * 2)
        return cls((sparse.diags(degree) - adjacent).tocsr(), rows, columns, edge)

    def boundary_sums(self, values: np.ndarray) -> np.ndarray:
        """For each masked pixel the sum of `values` (h, w, channels) over its neighbours that are not masked."""
        pixel, row, column = self.edge
        given, count = values[row, column], len(self.rows)
        return np.stack([np.bincount(pixel, channel, minlength=count) for channel in given.T], axis=1)


def numbered(inside: np.ndarray) -> np.ndarray:
    """The masked pixels' numbers in reading order, -1 elsewhere."""
    numbers = np.full(inside.shape, -1, np.int32)
    numbers[inside] = np.arange(inside.sum(), dtype=np.int32)
    return numbers


def interpolation(rows: np.ndarray, columns: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Bilinear, from cells of 2x2 pixels that hold a masked one; with the cells' own rows and columns."""
    cells = np.zeros((rows.max() // 2 + 1, columns.max() // 2 + 1), bool)
    cells[rows // 2, columns // 2] = True
    numbers, found = numbered(cells), []

    def near_and_far(index: np.ndarray, size: int):
        return (index // 2, 0.75), ((index // 2 + np.where(index % 2, 1, -1)).clip(0, size - 1), 0.25)

    for row, weight in near_and_far(rows, cells.shape[0]):
        for column, other_weight in near_and_far(columns, cells.shape[1]):
            cell = numbers[row, column]
            pixel = np.nonzero(cell >= 0)[0]
            found.append((pixel, cell[pixel], np.full(len(pixel), weight * other_weight)))
    pixels, cell, weights = (np.concatenate(part) for part in zip(*found, strict=True))
    matrix = sparse.csr_matrix((weights, (pixels, cell)), shape=(len(rows), int(cells.sum())))
    return matrix, *np.nonzero(cells)


class Multigrid:
    """One symmetric V-cycle, an approximate inverse of a system's matrix: Galerkin coarsening, two Jacobi sweeps."""

    SWEEPS = (0.5618, 1.3896)  # the damping whose two sweeps do best on the upper three quarters of the spectrum

    def __init__(self, system: System):
        self.levels, matrix, rows, columns = [], system.matrix, system.rows, system.columns
        while matrix.shape[0] > COARSEST:
            up, rows, columns = interpolation(rows, columns)
            down = up.T.tocsr()
            self.levels.append((matrix, 1.0 / matrix.diagonal()[:, None], up, down))
            matrix = (down @ matrix @ up).tocsr()
        self.coarsest = np.linalg.pinv(matrix.toarray(), hermitian=True)

    def __call__(self, residual: np.ndarray, level: int = 0) -> np.ndarray:
        if level == len(self.levels):
            return self.coarsest @ residual
        matrix, inverse, up, down = self.levels[level]
        first, second = self.SWEEPS
        x = first * inverse * residual
        x = x + second * inverse * (residual - matrix @ x)
        x = x + up @ self(down @ (residual - matrix @ x), level + 1)
        x = x + second * inverse * (residual - matrix @ x)
        return x + first * inverse * (residual - matrix @ x)


def solve(system: System, given: np.ndarray) -> np.ndarray:
    """The solution of `matrix x = given`, each column (n, channels) by conjugate gradients of its own."""
    cycle, x, residual = Multigrid(system), np.zeros_like(given), given
    along, product, least = 0.0, np.ones(1), np.finfo(float).tiny
    for _ in range(MOST):
        step = cycle(residual)  # about the error that is left
        if np.abs(step).max() < TOLERANCE:
            return x
        last, product = product, (residual * step).sum(0)
        along = step + product / np.maximum(last, least) * along
        moved = system.matrix @ along
        length = product / np.maximum((along * moved).sum(0), least)
        x, residual = x + length * along, residual - length * moved
    raise RuntimeError(f"the blending did not converge: an error of {np.abs(step).max():g} is left")
