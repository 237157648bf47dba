from math import sqrt

import pytest
import torch
from steer.samplers.core import SampleNoise
from steer.samplers.langevin import langevin, model_calls
from steer.samplers.masks import composite, keep
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from steer.tests.closed_form import at_rest, last, log_spaced, standard_noise

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW, NoiseLaw(flow=True, noise_scale=0.7)]


def sigmas_of(law, steps):
    levels = log_spaced(14.6, 0.03, steps)
    return levels if not law.flow else [1.0, *(level / (1 + level) for level in levels[1:])]


def shapes():
    """A source, and a mask whose left is to be painted, with a soft edge."""
    known = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    mask = torch.zeros(2, 1, 3, 6, dtype=torch.float64)
    mask[..., :2], mask[..., 2] = 1.0, 0.25
    return known, mask


def moments(law, variance, momentum, sigma=0.4, rounds=400):
    """The variance at rest of the hole's one direction of this variance, and how fast it is forgotten."""
    gain = law.alpha(sigma) * variance / (law.alpha(sigma) ** 2 * variance + law.std(sigma) ** 2)

    def moved(x, velocity, fresh):
        drawn = iter((torch.tensor([[velocity]]).double(), torch.tensor([[fresh]]).double()))
        steps = langevin(lambda x, _: gain * x, torch.tensor([[x]]).double(), [sigma, 0.0], law, torch.zeros(1, 1),
                         torch.ones(1, 1), lambda like: next(drawn), torch.zeros_like, 3, momentum)  # fmt: skip
        return next(steps).x

    return at_rest(moved, law.std(sigma), law.alpha(sigma) * gain, rounds)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.8, 0.9])
def test_the_variance_at_rest_is_exact(law, ratio, momentum):
    """`alpha^2 v + std^2` for every `alpha^2 v / std^2`; independent noise would leave down to half of it."""
    sigma = 0.4
    variance = ratio * law.std(sigma) ** 2 / law.alpha(sigma) ** 2
    rest, _ = moments(law, variance, momentum, sigma, rounds=6000)
    assert rest == pytest.approx(law.alpha(sigma) ** 2 * variance + law.std(sigma) ** 2, rel=1e-6)


@pytest.mark.parametrize(
    "ratio, momentum, radius",
    [(10, 0.0, 0.909), (10, 0.5, 0.707), (10, 0.8, 0.894), (100, 0.0, 0.990), (100, 0.5, 0.969), (100, 0.8, 0.894)],
)
def test_momentum_forgets_faster(ratio, momentum, radius):
    sigma = 0.4
    variance = ratio * VARIANCE_EXPLODING.std(sigma) ** 2
    assert moments(VARIANCE_EXPLODING, variance, momentum, sigma)[1] == pytest.approx(radius, abs=1e-3)


@pytest.mark.parametrize("law", LAWS)
def test_one_call_a_level_is_deterministic_sampling_with_the_known_put_back(law):
    known, mask = shapes()
    sigmas, start = sigmas_of(law, 8), torch.randn_like(known)
    result = last(langevin(lambda x, s: torch.tanh(x), start, sigmas, law, known, mask, standard_noise(0),
                           standard_noise(1), inner=1))  # fmt: skip
    x, noise = start, standard_noise(1)
    for sigma, next_sigma in zip(sigmas, sigmas[1:], strict=False):
        x = keep(x, law.noised(known, sigma, noise(x)), mask)
        x = law.step(x, composite(torch.tanh(x), known, mask), sigma, next_sigma)
    assert torch.equal(result, keep(x, known, mask))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_at_momentum_0_each_noise_serves_two_moves(law, momentum):
    """x = alpha D + std (n + n') / sqrt 2; with momentum it is another chain."""
    known, sigma = torch.zeros(1, 4, 3, 3, dtype=torch.float64), 0.4
    drawn, noise = [], standard_noise(0)

    def draw(like):
        drawn.append(noise(like))
        return drawn[-1]

    steps = langevin(lambda x, s: torch.tanh(x), torch.randn_like(known), [sigma, 0.0], law, known,
                     torch.ones_like(known), draw, noise, 3, momentum)  # fmt: skip
    for move in range(2):
        step = next(steps)
        paired = law.alpha(sigma) * step.denoised + law.std(sigma) * (drawn[move] + drawn[move + 1]) / sqrt(2.0)
        assert torch.allclose(step.x, paired) == (momentum == 0.0)


@pytest.mark.parametrize("law", LAWS)
def test_known_is_exact_and_noised_where_the_run_stops_early(law):
    known, mask = shapes()
    sigmas, noise = sigmas_of(law, 20), standard_noise(0)

    def end(sigmas):
        return last(langevin(lambda x, s: x * 0.1, torch.randn_like(known), sigmas, law, known, mask, noise, noise))

    kept = (mask == 0.0).expand_as(known)
    assert torch.equal(end(sigmas)[kept], known[kept])
    part = (end(sigmas[:8]) - law.alpha(sigmas[7]) * known)[kept]
    assert part.std() == pytest.approx(law.std(sigmas[7]), rel=0.4)


@pytest.mark.parametrize("law", LAWS)
def test_what_the_hole_holds_does_not_matter(law):
    known, mask = shapes()
    other = torch.where(mask == 1.0, known + 5.0, known)
    start = torch.randn_like(known)

    def run(known):
        return last(langevin(lambda x, s: torch.tanh(x), start, sigmas_of(law, 6), law, known, mask,
                             standard_noise(0), standard_noise(1)))  # fmt: skip

    assert torch.equal(run(known), run(other))


def test_moves_go_by_their_own_estimate_and_steps_by_the_other():
    known, mask = shapes()
    called = []

    def estimate(name):
        return lambda x, s: (called.append(name), x * 0.5)[1]

    last(langevin(estimate("step"), known, [2.0, 0.5, 0.0], VARIANCE_EXPLODING, known, mask, standard_noise(0),
                  standard_noise(1), 2, moving=estimate("move")))  # fmt: skip
    assert called == ["step", "move", "move", "step"]


def test_a_soft_edge_is_that_share_of_the_answer():
    known, mask = shapes()
    result = last(langevin(lambda x, s: x * 0 + 2.0, torch.randn_like(known), [2.0, 1.0, 0.0], VARIANCE_EXPLODING,
                           known, mask, standard_noise(0), standard_noise(1)))  # fmt: skip
    torch.testing.assert_close(result[..., 2], 0.25 * 2.0 + 0.75 * known[..., 2])


def test_sample_in_a_batch_equals_it_alone():
    known, mask = shapes()
    start = torch.randn_like(known)

    def run(pick):
        streams = [SampleNoise(5, name, start[pick], known[pick]) for name in ("move", "known")]
        return last(langevin(lambda x, s: x / (1 + s * s), 14.6 * start[pick], sigmas_of(VARIANCE_EXPLODING, 8),
                             VARIANCE_EXPLODING, known[pick], mask[pick], *streams))  # fmt: skip

    torch.testing.assert_close(run(slice(0, 2)), torch.cat([run(slice(0, 1)), run(slice(1, 2))]))


@pytest.mark.parametrize(
    "law, sigmas, inner, calls",
    [
        (VARIANCE_EXPLODING, [4.0, 1.0, 0.5, 0.25, 0.0], 3, [4.0, 1.0, *[0.5] * 5, *[0.25] * 5]),
        (RECTIFIED_FLOW, [1.0, 0.6, 0.5, 0.4, 0.0], 5, [1.0, 0.6, 0.5, *[0.4] * 9]),
        (LAWS[2], [1.0, 0.6, 0.5, 0.4, 0.0], 2, [1.0, 0.6, *[0.5] * 3, *[0.4] * 3]),
        (VARIANCE_EXPLODING, [4.0, 0.5, 0.0], 1, [4.0, 0.5]),
        (VARIANCE_EXPLODING, [0.5, 0.25], 2, [0.5] * 3),
    ],
)
def test_the_calls_are_where_the_picture_outweighs_the_noise(law, sigmas, inner, calls):
    known, mask = shapes()
    seen = []

    def denoise(x, sigma):
        seen.append(sigma)
        return x * 0.5

    last(langevin(denoise, known, sigmas, law, known, mask, standard_noise(0), standard_noise(1), inner))
    assert seen == calls and model_calls(sigmas, law, inner) == len(calls)


@pytest.mark.parametrize("inner, momentum", [(0, 0.5), (5, 1.0), (5, -0.1), (5, float("nan"))])
def test_settings_without_meaning_are_refused(inner, momentum):
    known, mask = shapes()
    with pytest.raises(ValueError, match="momentum"):
        next(langevin(None, known, [1.0, 0.0], VARIANCE_EXPLODING, known, mask, None, None, inner, momentum))
