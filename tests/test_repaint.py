import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.samplers.repaint import jump_schedule, model_calls, repaint
from steer.tests.closed_form import gaussian_denoiser, last, log_spaced, standard_noise

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW]
RHO = 0.9
CORRELATED = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)
INDEPENDENT = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


def sigmas_of(law, steps):
    levels = log_spaced(14.6, 0.03, steps)
    return levels if not law.flow else [1.0, *(level / (1 + level) for level in levels[1:])]


@pytest.mark.parametrize("steps, calls", [(250, 2410), (50, 410), (20, 110), (10, 10), (3, 3)])
def test_published_cost(steps, calls):
    assert model_calls(steps, 10, 10) == calls


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 11, 25, 250])
@pytest.mark.parametrize("resamples, jump_length", [(1, 10), (10, 10), (4, 3), (2, 1)])
def test_schedule_moves_by_one_and_ends(steps, resamples, jump_length):
    schedule = jump_schedule(steps, resamples, jump_length)
    assert schedule[0] == 0 and schedule[-1] == steps
    assert all(abs(b - a) == 1 for a, b in zip(schedule, schedule[1:], strict=False))
    jumps = len(range(0, steps - jump_length, jump_length))
    assert model_calls(steps, resamples, jump_length) == steps + jumps * (resamples - 1) * jump_length


@pytest.mark.parametrize("resamples, jump_length", [(0, 10), (10, 0), (-1, 1)])
def test_bad_schedule_is_refused(resamples, jump_length):
    with pytest.raises(ValueError, match="at least 1"):
        jump_schedule(20, resamples, jump_length)


@pytest.mark.parametrize("law", LAWS)
def test_all_known_returns_the_source_exactly(law):
    known, noise = torch.randn(2, 4, 3, 5), standard_noise(0)
    steps = repaint(lambda x, s: x * 0.1, torch.randn_like(known), sigmas_of(law, 20), law, known,
                    torch.zeros_like(known), noise, noise)  # fmt: skip
    assert torch.equal(last(steps), known)


@pytest.mark.parametrize("law", LAWS)
def test_known_part_is_exact_and_part_of_a_partial_run_is_noised(law):
    known, noise = torch.randn(1, 4, 4, 4), standard_noise(0)
    mask = torch.zeros_like(known)
    mask[..., :2] = 1
    sigmas = sigmas_of(law, 20)
    full = last(repaint(lambda x, s: x * 0.1, torch.randn_like(known), sigmas, law, known, mask, noise, noise))
    assert torch.equal(full[..., 2:], known[..., 2:]) and not torch.equal(full[..., :2], known[..., :2])
    part = last(repaint(lambda x, s: x * 0.1, torch.randn_like(known), sigmas[:8], law, known, mask, noise, noise))
    assert (part - law.alpha(sigmas[7]) * known)[..., 2:].std() == pytest.approx(law.std(sigmas[7]), rel=0.4)


@pytest.mark.parametrize("law", LAWS)
def test_all_unknown_once_is_plain_ancestral_sampling_bitwise(law):
    denoise, sigmas = gaussian_denoiser(law, ZERO, CORRELATED), sigmas_of(law, 20)
    x = law.std(sigmas[0]) * torch.randn(64, 2, dtype=torch.float64)
    mask = torch.ones_like(x)
    painted = repaint(denoise, x, sigmas, law, x * 0, mask, standard_noise(1), standard_noise(2), resamples=1)
    assert torch.equal(last(painted), last(ddim(denoise, x, sigmas, law, 1.0, standard_noise(1))))


def inpaint(law, covariance, resamples, steps=50, count=20_000):
    """The unknown first coordinate, with the second known to be 1.5."""
    known = torch.tensor([[0.0, 1.5]], dtype=torch.float64).expand(count, 2)
    mask = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(count, 2)
    noise, sigmas = standard_noise(3), sigmas_of(law, steps)
    x = law.noised(known, sigmas[0], noise(known))
    denoise = gaussian_denoiser(law, ZERO, covariance)
    return last(repaint(denoise, x, sigmas, law, known, mask, noise, standard_noise(4), resamples))[:, 0]


@pytest.mark.parametrize("law", LAWS)
def test_independent_unknown_is_unaffected(law):
    """The unknown coordinate is distributed as plain ancestral sampling leaves it (50 steps of it narrow a little)."""
    denoise, noise, sigmas = gaussian_denoiser(law, ZERO, INDEPENDENT), standard_noise(3), sigmas_of(law, 50)
    x = law.std(sigmas[0]) * noise(torch.zeros(20_000, 2, dtype=torch.float64))
    plain = last(ddim(denoise, x, sigmas, law, 1.0, noise))[:, 0]
    samples = inpaint(law, INDEPENDENT, resamples=1)
    assert abs(samples.mean() - plain.mean()) < 0.03 and abs(samples.std() - plain.std()) < 0.02
    resampled = inpaint(law, INDEPENDENT, resamples=5)
    assert abs(resampled.mean()) < 0.03 and abs(resampled.std() - plain.std()) < 0.03


@pytest.mark.parametrize("law", LAWS)
def test_resampling_halves_the_bias(law):
    """Exact conditional mean 0.9 * 1.5 = 1.35; without resampling the known part is only half heeded."""
    once, ten = (inpaint(law, CORRELATED, resamples).mean() for resamples in (1, 10))
    assert abs(ten - 1.35) * 2 <= abs(once - 1.35)


def test_sample_in_a_batch_equals_it_alone():
    from steer.samplers.core import SampleNoise

    law, known = VARIANCE_EXPLODING, torch.randn(2, 4, 3, 5)
    start = torch.randn_like(known)
    mask = (torch.rand_like(known[:, :1]) > 0.5).float()  # another mask for each

    def run(pick):
        streams = [SampleNoise(5, name, start[pick], known[pick]) for name in ("step", "known")]
        return last(repaint(lambda x, s: x / (1 + s * s), 14.6 * start[pick], sigmas_of(law, 20), law, known[pick],
                            mask[pick], *streams))  # fmt: skip

    together = run(slice(0, 2))
    torch.testing.assert_close(together, torch.cat([run(slice(0, 1)), run(slice(1, 2))]), rtol=1e-6, atol=1e-6)
    assert torch.equal(together, run(slice(0, 2)))


def test_video_latents_and_soft_masks():
    known, noise = torch.randn(1, 4, 3, 6, 5), standard_noise(0)
    mask = torch.zeros_like(known)
    mask[..., 2] = 1
    mask[..., 1] = 0.25
    result = last(repaint(lambda x, s: x * 0 + 2.0, torch.randn_like(known), [2.0, 1.0, 0.0], VARIANCE_EXPLODING,
                          known, mask, noise, noise))  # fmt: skip
    assert torch.equal(result[..., 0], known[..., 0]) and torch.equal(result[..., 2], known[..., 2] * 0 + 2.0)
    torch.testing.assert_close(result[..., 1], 0.25 * 2.0 + 0.75 * known[..., 1])
