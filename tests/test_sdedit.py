import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.samplers.sdedit import sdedit_sigmas
from steer.tests.closed_form import gaussian_denoiser, last, log_spaced, standard_noise


def uniform(total):
    return [1.0 - i / total for i in range(total)] + [0.0]


def karras(total):
    ramp = torch.linspace(0, 1, total, dtype=torch.float64)
    return [*((14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7).tolist(), 0.0]


def table(total):
    """Like the host's ddim_uniform: strides through 100 entries, so that some counts cannot be had."""
    return [*(i / 100 for i in range(100, 0, -max(100 // total, 1))), 0.0]


@pytest.mark.parametrize("schedule, top", [(uniform, 1.0), (karras, 14.6), (table, 1.0)])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.999, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_exactly_so_many_steps_from_exactly_there(schedule, top, part, steps):
    sigmas, start_step = sdedit_sigmas(schedule, part * top, steps)
    assert len(sigmas) == steps + 1 and sigmas[0] == part * top and sigmas[-1] == 0.0
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
    assert start_step >= 0


def test_full_strength_is_the_schedulers_own_run():
    for schedule in (uniform, karras):
        sigmas, start_step = sdedit_sigmas(schedule, schedule(20)[0], 20)
        assert sigmas == schedule(20) and start_step == 0


def test_levels_below_are_the_schedulers():
    sigmas, start_step = sdedit_sigmas(uniform, 0.6, 12)
    assert start_step == 8
    assert sigmas == pytest.approx(uniform(20)[8:])


def test_more_steps_than_the_table_has_is_refused():
    with pytest.raises(ValueError, match="only 5 levels.*at most 5 steps"):
        sdedit_sigmas(table, 0.05, 20)
    with pytest.raises(ValueError, match="at least one step"):
        sdedit_sigmas(uniform, 0.5, 0)


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, RECTIFIED_FLOW])
@pytest.mark.parametrize("level", [0.5, 2.0, 6.0])
def test_lands_between_guide_and_data_as_the_closed_form_says(law, level):
    """Data N(mu, S), guide g, from level sigma (as a ratio): ODE and SDE mean and variance of algorithms section 6."""
    mean, variance, guide = torch.tensor([0.5], dtype=torch.float64), 0.3, 2.0
    ratios = log_spaced(level, level * 1e-3, 400)
    sigmas = ratios if not law.flow else [r / (1 + r) for r in ratios]
    noise = standard_noise(0)
    denoise = gaussian_denoiser(law, mean, torch.tensor([[variance]], dtype=torch.float64))
    start = law.noised(torch.full((40_000, 1), guide, dtype=torch.float64), sigmas[0], noise(torch.zeros(40_000, 1)))
    share = variance / (variance + level**2)
    ode = last(ddim(denoise, start, sigmas, law))
    assert abs(ode.mean() - (mean + (guide - mean) * share**0.5)) < 0.02
    assert abs(ode.var() - level**2 * share) < 0.02
    sde = last(ddim(denoise, start, sigmas, law, 1.0, noise))
    assert abs(sde.mean() - (mean + (guide - mean) * share)) < 0.02
    assert abs(sde.var() - (variance - variance * share + level**2 * share**2)) < 0.02


def test_no_strength_returns_the_guide():
    guide = torch.randn(3, 2, dtype=torch.float64)
    denoise = gaussian_denoiser(VARIANCE_EXPLODING, torch.zeros(2), torch.eye(2, dtype=torch.float64))
    start = VARIANCE_EXPLODING.noised(guide, 1e-6, torch.randn_like(guide))
    torch.testing.assert_close(last(ddim(denoise, start, [1e-6, 0.0], VARIANCE_EXPLODING)), guide, atol=1e-5, rtol=0)
