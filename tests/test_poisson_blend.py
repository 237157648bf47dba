import numpy as np
import pytest
import torch
from scipy.sparse.linalg import spsolve
from steer.pictures.poisson_blend import System, poisson_blend, solve


def random_pictures(height, width, seed=0):
    """Two pictures from the middle of the range, so that a blend of them is not clamped."""
    generator = torch.Generator().manual_seed(seed)
    return [0.4 + 0.2 * torch.rand(height, width, 3, generator=generator) for _ in range(2)]


def blob(height, width, seed=0, share=0.5):
    """A random mask of several parts, some at the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = sum(
        np.cos(rng.uniform(0, 0.4) * rows + rng.uniform(0, 0.4) * columns + rng.uniform(0, 6)) for _ in range(12)
    )
    return torch.from_numpy(waves > np.quantile(waves, 1 - share))


def dense(source, edited, inside):
    """The paper's equation 7 written out pixel by pixel for f itself, solved densely."""
    height, width = inside.shape
    places = {(int(y), int(x)): number for number, (y, x) in enumerate(zip(*np.nonzero(inside.numpy()), strict=True))}
    matrix, right = np.zeros((len(places),) * 2), np.zeros((len(places), 3))
    f, g = source.double().numpy(), edited.double().numpy()
    for (y, x), p in places.items():
        for q in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= q[0] < height and 0 <= q[1] < width:
                matrix[p, p] += 1
                right[p] += g[y, x] - g[q]
                if q in places:
                    matrix[p, places[q]] -= 1
                else:
                    right[p] += f[q]
    out = f.copy()
    out[inside.numpy()] = np.linalg.solve(matrix, right)
    return torch.from_numpy(out).clamp(0, 1)


def holes():
    mask = torch.ones(20, 24, dtype=torch.bool)
    mask[3:5, 4:9] = mask[12, 13] = False
    return mask


def parts():
    mask = torch.zeros(20, 24, dtype=torch.bool)
    mask[0, 0] = mask[5, 5] = mask[8, :] = True
    mask[12:20, 15:24] = True
    return mask


MASKS = {
    "inside": torch.nn.functional.pad(torch.ones(12, 16, dtype=torch.bool), (4, 4, 4, 4)),
    "at a border": torch.nn.functional.pad(torch.ones(14, 16, dtype=torch.bool), (8, 0, 6, 0)),
    "across": torch.nn.functional.pad(torch.ones(20, 9, dtype=torch.bool), (8, 7)),
    "with holes, else everything": holes(),
    "several parts": parts(),
    "blobs": blob(20, 24),
    "checkerboard": torch.from_numpy(np.indices((20, 24)).sum(0) % 2 == 0),
    "larger than the coarsest grid": blob(40, 50, 1, 0.8),
}


@pytest.mark.parametrize("name", MASKS)
def test_is_the_dense_solution_and_the_source_outside(name):
    inside = MASKS[name]
    source, edited = random_pictures(*inside.shape)
    out = poisson_blend(source, edited, inside)
    torch.testing.assert_close(out.double(), dense(source, edited, inside), rtol=0, atol=1e-6)
    assert torch.equal(out[~inside], source[~inside])
    assert not torch.equal(out[inside], edited[inside])


@pytest.mark.parametrize("name", MASKS)
def test_a_constant_is_taken_out_again(name):
    source, _ = random_pictures(*MASKS[name].shape)
    shift = torch.tensor([0.3, -0.25, 0.0])
    torch.testing.assert_close(poisson_blend(source, source + shift, MASKS[name]), source, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_equal_pictures_are_returned_bitwise(name):
    source, _ = random_pictures(*MASKS[name].shape)
    assert torch.equal(poisson_blend(source, source.clone(), MASKS[name]), source)


def test_a_flat_edit_takes_a_linear_source_on():
    """A linear function is harmonic, so it is the membrane over its own border values."""
    rows, columns = torch.meshgrid(torch.linspace(0, 0.5, 40), torch.linspace(0, 0.4, 56), indexing="ij")
    source = (0.05 + rows + columns)[..., None].expand(-1, -1, 3).contiguous()
    inside = torch.zeros(40, 56, dtype=torch.bool)
    inside[5:30, 7:50] = True
    out = poisson_blend(source, torch.full_like(source, 0.5), inside)
    torch.testing.assert_close(out, source, rtol=0, atol=1e-6)


def test_no_condition_at_the_picture_border():
    """Across the whole width to the lower border nothing holds the membrane but the row above the mask."""
    source = torch.linspace(0.1, 0.9, 30)[:, None, None].expand(30, 20, 3).contiguous()
    inside = torch.zeros(30, 20, dtype=torch.bool)
    inside[10:] = True
    out = poisson_blend(source, torch.zeros_like(source), inside)
    torch.testing.assert_close(out[10:], source[9].expand(20, 20, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_larger_masks_against_a_sparse_direct_solve(seed):
    """Speckles, lines and blobs at once, over several grids."""
    rng = np.random.default_rng(seed)
    inside = blob(150, 170, seed).numpy() | (rng.random((150, 170)) < 0.3)
    inside[::7] = seed % 2 == 0
    system = System.of(inside)
    given = system.boundary_sums(rng.random((150, 170, 3)))
    expected = np.stack([spsolve(system.matrix.tocsc(), column) for column in given.T], 1)
    assert np.abs(solve(system, given) - expected).max() < 1e-6
    assert abs(system.matrix - system.matrix.T).max() == 0


def test_everything_masked_is_the_edit_and_nothing_the_source():
    source, edited = random_pictures(6, 7)
    assert torch.equal(poisson_blend(source, edited, torch.ones(6, 7, dtype=torch.bool)), edited)
    assert torch.equal(poisson_blend(source, edited, torch.zeros(6, 7, dtype=torch.bool)), source)


def test_the_result_is_within_range():
    source, edited = torch.zeros(9, 9, 3), torch.rand(9, 9, 3)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[2:7, 2:7] = True
    out = poisson_blend(source, edited, inside)
    assert out.min() == 0 and out.max() <= 1 and dense(source, edited, inside)[inside].min() == 0
