"""The operators against their matrices and other implementations of them, and JPEG against Pillow's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from steer.bench.measurement_exact import Iterated, Problem, dps, exact, figures, matrices, once, solved
from steer.samplers.jpeg import CHROMA, JPEG, LUMA, coefficients, cosines, quantisation
from steer.samplers.measurement import Blur, Crop, Gray, Resize, fitted, gaussian, line, squared_gaps
from steer.samplers.proximal import proximal_change

DOUBLE = torch.float64


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


LINEAR = {
    "none": (),
    "gray": (Gray(),),
    "area": (Resize(4, 3),),
    "bicubic": (Resize(5, 4, "bicubic"),),
    "lanczos": (Resize(5, 4, "lanczos"),),
    "blur": (Blur(0.7),),
    "motion": (Blur(0.0, 4, 30.0),),
    "crop": (Crop(2, 1, 6, 5),),
    "gray, blur, resize": (Gray(), Blur(0.5, 3, 90.0), Resize(4, 3)),
    "crop, resize": (Crop(2, 1, 8, 6), Resize(4, 3)),
}
SIZE = 9, 12


@pytest.mark.parametrize("name", LINEAR)
def test_the_gradient_is_that_of_the_matrix(name):
    """`A^T w (A x - y) / noise^2` with A read off by unit vectors, of a batch with a weight."""
    operators, x, noise = LINEAR[name], rand(2, 3, *SIZE).requires_grad_(), 0.1

    def applied(pictures):
        for operator in operators:
            pictures = operator(pictures)
        return pictures

    units = torch.eye(3 * SIZE[0] * SIZE[1], dtype=DOUBLE).reshape(-1, 3, *SIZE)
    matrix = applied(units).flatten(1).T
    out = applied(x)
    torch.testing.assert_close(out.flatten(1), x.flatten(1) @ matrix.T)
    measured, weight = rand(2, 3, *out.shape[-2:], seed=1), rand(2, 1, *out.shape[-2:], seed=2)
    assert fitted(operators, SIZE, tuple(out.shape[-2:])) == operators

    value = squared_gaps(operators, measured, weight)(x) / (2 * noise**2)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    y = Gray()(measured) if out.shape[1] == 1 else measured
    gap = (weight * (out - y)).flatten(1)
    torch.testing.assert_close(gradient.flatten(1), gap @ matrix / noise**2)
    expected = (weight * (out - y).square()).flatten(1).sum(1) / (2 * noise**2)
    torch.testing.assert_close(value, expected)


def test_gray_is_pillows():
    picture = (rand(1, 3, 16, 24) * 255).round()
    pixels = picture[0].movedim(0, -1).byte().numpy()
    expected = torch.from_numpy(np.array(Image.fromarray(pixels).convert("L"))).double()
    assert (Gray()(picture)[0, 0] - expected).abs().max() <= 0.51  # it rounds
    assert torch.equal(Gray()(Gray()(picture)), Gray()(picture))


@pytest.mark.parametrize("method", ["bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(7, 10), (4, 3), (20, 31)])
def test_resized_as_pillow_resizes(method, size):
    x = rand(1, 1, 20, 30)
    resample = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}[method]
    floats = Image.fromarray(x[0, 0].float().numpy())
    expected = torch.from_numpy(np.array(floats.resize(size[::-1], resample))).double()
    out = Resize(*size[::-1], method)(x)[0, 0]
    inner = (slice(1, -1),) * 2 if method == "bicubic" and size[0] == 20 else (slice(None),) * 2
    torch.testing.assert_close(out[inner], expected[inner], rtol=0, atol=1e-4)


def test_area_is_the_mean_of_cells():
    x = rand(1, 3, 8, 12)
    expected = x.reshape(1, 3, 2, 4, 3, 4).mean((3, 5))
    torch.testing.assert_close(Resize(3, 2)(x), expected)


@pytest.mark.parametrize("std", [0.6, 2.0])
def test_the_gaussian_is_scipys(std):
    x = rand(1, 1, 24, 32)
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), std, mode="mirror", radius=gaussian(std).shape[-1] // 2)
    torch.testing.assert_close(Blur(std)(x)[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_motion_by_hand():
    """Even and odd lengths, level, upright and slanted; the middle stays where it was."""
    assert torch.equal(line(1, 20.0), torch.ones(1, 1, dtype=DOUBLE))
    assert line(3, 0.0).tolist() == [[0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]]
    torch.testing.assert_close(line(3, 90.0), line(3, 0.0).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(line(2, 0.0)[1], torch.tensor([0.25, 0.5, 0.25], dtype=DOUBLE))
    slanted = line(9, 45.0)
    assert slanted[2].argmax() > 4 > slanted[-3].argmax()  # from the lower left to the upper right
    torch.testing.assert_close(slanted, slanted.flip(0, 1))
    assert float(slanted.sum()) == pytest.approx(1.0)


def test_a_crop_is_the_hosts():
    x = rand(1, 3, 8, 12)
    assert torch.equal(Crop(2, 1, 6, 5)(x), x[:, :, 1:6, 2:8])


def test_sizes_that_are_left_out_are_those_of_what_was_measured():
    assert fitted((Resize(),), (64, 96), (16, 24)) == (Resize(24, 16),)
    assert fitted((Crop(8, 4),), (64, 96), (32, 40)) == (Crop(8, 4, 40, 32),)
    assert fitted((Crop(0, 0, 64, 64), Resize()), (64, 96), (8, 8))[1] == Resize(8, 8)
    assert fitted((Resize(),), (50, 75), (17, 25)) == (Resize(25, 17),)  # a rounded side


@pytest.mark.parametrize(
    "operators, measured, message",
    [
        (
            (),
            (32, 48),
            "image is 48x32 and the picture of latent_image 96x64; .*SteerResizeOperator.*SteerCropOperator",
        ),
        ((Gray(),), (64, 64), "image is 64x64 .*after the operators, 96x64"),
        ((Resize(),), (32, 32), "image is 32x32 and the picture that is resized 96x64, of another aspect"),
        ((Resize(24, 16),), (32, 48), "48x32 .*24x16"),
        ((Crop(60, 0),), (32, 48), "crop of 48x32 at x 60, y 0 ends beyond the picture of 96x64"),
        ((Blur(20.0),), (64, 96), "std 20 .* reaches 80 pixels far.*96x64"),
        ((Resize(12, 8), JPEG(50)), (8, 12), "12x8, and JPEG's blocks are 16x16"),
    ],
)
def test_what_does_not_fit_is_refused(operators, measured, message):
    with pytest.raises(ValueError, match=message):
        fitted(operators, (64, 96), measured)


def compressed(picture, quality, subsampled, gray=False):
    """What Pillow makes of (1, 3, h, w), decoded; and its tables."""
    image = Image.fromarray((picture[0] * 255).round().byte().movedim(0, -1).numpy())
    file = io.BytesIO()
    options = {} if gray else {"subsampling": 2 if subsampled else 0}
    (image.convert("L") if gray else image).save(file, "JPEG", quality=quality, **options)
    opened = Image.open(file)
    tables = {key: torch.tensor(table).reshape(8, 8) for key, table in opened.quantization.items()}
    decoded = torch.from_numpy(np.array(opened.convert("RGB"))).double() / 255
    return decoded.movedim(-1, 0)[None], tables


def smooth(height=48, width=64, seed=0):
    """A picture with soft colours, none of them clipped, and some grain."""
    coarse = torch.nn.functional.interpolate(rand(1, 3, 5, 6, seed=seed), (height, width), mode="bicubic")
    return ((coarse.clamp(0, 1) * 0.6 + 0.2 + 0.03 * rand(1, 3, height, width, seed=seed + 1)) * 255).round() / 255


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 100])
def test_the_tables_are_pillows(quality):
    _, tables = compressed(smooth(), quality, True)
    assert torch.equal(quantisation(LUMA, quality), tables[0])
    assert torch.equal(quantisation(CHROMA, quality), tables[1])


def test_the_transform_is_orthonormal_and_scipys():
    from scipy.fft import dctn

    torch.testing.assert_close(cosines() @ cosines().T, torch.eye(8, dtype=DOUBLE))
    plane = rand(1, 16, 24)
    expected = torch.from_numpy(dctn(plane[0, 8:, 16:].numpy(), norm="ortho"))
    torch.testing.assert_close(coefficients(plane)[0, 1, 2], expected)


def rms(operator, measured, picture):
    """The distance to the cells, in values of 0 to 255 by pixel."""
    weight = torch.ones_like(measured[:, :1])
    return 255 * float((squared_gaps((operator,), measured, weight)(picture) / measured[0, 0].numel()).sqrt())


@pytest.mark.parametrize(
    "quality, subsampled, most",
    [(10, False, 0.02), (30, False, 0.05), (10, True, 0.5), (30, True, 0.5), (75, True, 0.5)],
)
def test_a_picture_is_in_the_cells_of_its_own_file(quality, subsampled, most):
    """But for what rounding to bytes and, of 4:2:0, the decoder's smoothed colours lost. Another picture is not."""
    picture, operator = smooth(), JPEG(quality, subsampled)
    decoded, _ = compressed(picture, quality, subsampled)
    assert rms(operator, decoded, picture) < most
    assert rms(operator, decoded, decoded) < most
    assert rms(operator, decoded, smooth(seed=5)) > 10 * most


def test_gray_files_too():
    picture = smooth()
    decoded, _ = compressed(picture, 20, False, gray=True)
    weight = torch.ones_like(decoded[:, :1])
    gap = squared_gaps((Gray(), JPEG(20)), decoded, weight)(picture)
    assert 255 * float((gap / decoded[0, 0].numel()).sqrt()) < 0.1


def test_every_picture_of_the_cells_compresses_to_the_file():
    """Grain that was moved into the cells, and a little further in: distance 0, and the same file to a rounding."""
    picture, operator = smooth(), JPEG(20, False)
    decoded, _ = compressed(picture, 20, False)
    moved = (picture + 0.2 * (rand(1, 3, 48, 64, seed=9) - 0.5)).requires_grad_()
    distances = squared_gaps((operator,), decoded, torch.ones_like(decoded[:, :1]))
    assert distances(moved).item() > 1e-3
    for _ in range(300):
        (gradient,) = torch.autograd.grad(distances(moved).sum(), moved)
        moved = (moved - 0.25 * gradient).detach().requires_grad_()
    assert distances(moved).item() < 1e-6
    inside = 0.7 * moved.detach() + 0.3 * decoded
    again, _ = compressed(inside, 20, False)
    assert (again - decoded).square().mean().sqrt() < 0.005 < 0.02 < (inside - decoded).square().mean().sqrt()


def test_the_distance_is_convex():
    decoded, _ = compressed(smooth(), 10, True)
    distances = squared_gaps((JPEG(10),), decoded, torch.ones_like(decoded[:, :1]))
    a, b = rand(8, 3, 48, 64, seed=1), rand(8, 3, 48, 64, seed=2)
    assert (distances(0.3 * a + 0.7 * b) <= 0.3 * distances(a) + 0.7 * distances(b)).all()


def test_the_weight_is_of_blocks():
    decoded, _ = compressed(smooth(), 10, True)
    weight = torch.zeros_like(decoded[:, :1])
    weight[..., :32] = 1.0
    other = smooth()
    other[..., 32:] = rand(1, 3, 48, 32)
    distances = squared_gaps((JPEG(10),), decoded, weight)
    assert float(distances(other)) == pytest.approx(float(distances(smooth())), rel=1e-9, abs=1e-12)


def test_a_batch_is_its_pictures_alone():
    x, y, weight = rand(3, 3, 32, 32), rand(3, 3, 32, 32, seed=1), rand(3, 1, 32, 32, seed=2)
    for operators in ((), (Gray(), JPEG(20)), (Blur(1.0), JPEG(20))):
        alone = [squared_gaps(operators, y[i : i + 1], weight[i : i + 1])(x[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(squared_gaps(operators, y, weight)(x), torch.cat(alone))


def test_the_proximal_estimate_agrees_with_all_that_was_measured():
    """Small noise: gray, shrunk; and the cells."""
    denoised = smooth(seed=3)
    for operators, y in (
        ((Gray(), Resize(16, 12)), rand(1, 3, 12, 16)),
        ((JPEG(10),), compressed(smooth(), 10, True)[0]),
    ):
        gaps = squared_gaps(operators, y, torch.ones_like(y[:, :1]))

        def loss(z, gaps=gaps):
            z = z.detach().requires_grad_()
            value = gaps(z) / (2 * 1e-3**2)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

        out = denoised + proximal_change(loss, denoised, torch.tensor(0.5, dtype=DOUBLE), 60)
        assert float(gaps(out)) < 1e-4 * float(gaps(denoised))


def test_the_table_of_exact_posteriors():
    """What bench/measurement_exact.md says, on two of its problems."""
    problems = {name: Problem(name, matrices()[name]) for name in ("pool 8", "blur 3")}

    def error(name, change, eta=1.0):
        return figures(problems[name], change, eta)[0]

    for name in problems:
        assert error(name, exact) < 0.03
        assert 0.02 < error(name, solved) < error(name, solved, 0.0) < error(name, dps)
    assert error("pool 8", Iterated(5)) == pytest.approx(error("pool 8", solved), abs=1e-3)
    assert error("blur 3", Iterated(10)) < 0.5 * error("blur 3", Iterated(5)) < error("blur 3", once)


def test_the_iterations_of_the_table_end_at_its_solution():
    problem = Problem("blur 3", matrices()["blur 3"])
    denoised = torch.randn(4, 64, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for sigma in (0.1, 1.0, 10.0):
        expected = solved(problem, denoised, sigma)
        torch.testing.assert_close(Iterated(400)(problem, denoised, sigma), expected, rtol=0, atol=1e-2)
