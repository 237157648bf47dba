"""Direct editing against the published recurrences, re-stated here, and against closed forms on Gaussians."""

from itertools import pairwise
from math import atan, log, sqrt

import pytest
import torch
from steer.samplers.core import SampleNoise
from steer.samplers.ddim import ddim
from steer.samplers.direct_edit import direct_edit, model_calls
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from steer.tests.closed_form import last, log_spaced, standard_noise

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW]
SHAPES = [(2, 4, 3, 5), (2, 4, 2, 3, 5)]


def levels_of(law, steps, top=9.0, low=0.03):
    ratios = log_spaced(top, low, steps)
    return ratios if not law.flow else [ratio / (1 + ratio) for ratio in ratios]


def wavy(law, turn):
    """An estimate that is no straight line in x, and the same one in both laws."""

    def denoise(x, sigma):
        clean, ratio = x / law.alpha(sigma), law.std(sigma) / law.alpha(sigma)
        return (clean + ratio * torch.sin(2 * clean + turn)) / (1 + ratio**2) + turn

    return denoise


def gaussian(law, mean, variance):
    """E[x0 | x] for x0 ~ N(mean, variance) in each value."""

    def denoise(x, sigma):
        alpha = law.alpha(sigma)
        return mean + alpha * variance / (alpha**2 * variance + law.std(sigma) ** 2) * (x - alpha * mean)

    return denoise


def paired(source, target):
    return lambda x_source, x_target, sigma: (source(x_source, sigma), target(x_target, sigma))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edited(pair, sigmas, law, source, noise, **options):
    """The steps of a run whose first noise is the next one too."""
    return list(direct_edit(pair, law.noised(source, sigmas[0], noise(source)), sigmas, law, source, noise, **options))


# The published algorithms, in their own quantities.


def flow_edit(velocity, source, times, noise, average):
    """FlowEdit, Algorithm 1: Z is the edited picture, V its velocity, of which n_avg are averaged."""
    z = source
    for t, t_next in pairwise(times):
        v = 0
        for _ in range(average):
            z_source = (1 - t) * source + t * noise(source)
            z_target = z + z_source - source
            v = v + (velocity["target"](z_target, t) - velocity["source"](z_source, t)) / average
        z = z + (t_next - t) * v
    return z


def flow_align(velocity, source, times, noise, zeta):
    """FlowAlign, as its authors' code has it: the pull is a constant of each step."""
    z = source
    for t, t_next in pairwise(times):
        q = (1 - t) * source + t * noise(source)
        p = z + q - source
        v_p, v_q = velocity["target"](p, t), velocity["source"](q, t)
        z = z + (t_next - t) * (v_p - v_q) + zeta * ((q - t * v_q) - (p - t * v_p))
    return z


def inf_edit(eps, source, alphas_bar, noise):
    """InfEdit's virtual inversion (DDCM at eta 1): the source's consistent noise takes the place of its prediction."""
    first = noise(source)
    z_source = z_target = alphas_bar[0] ** 0.5 * source + (1 - alphas_bar[0]) ** 0.5 * first
    for alpha_bar, next_alpha_bar in pairwise([*alphas_bar, 1.0]):
        root, std = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        consistent = (z_source - root * source) / std
        predicted = eps["target"](z_target, alpha_bar) - eps["source"](z_source, alpha_bar) + consistent
        clean = (z_target - std * predicted) / root
        fresh = (1 - next_alpha_bar) ** 0.5 * noise(source)
        z_source, z_target = next_alpha_bar**0.5 * source + fresh, next_alpha_bar**0.5 * clean + fresh
    return clean


def velocities():
    denoise = {"source": wavy(RECTIFIED_FLOW, 0.2), "target": wavy(RECTIFIED_FLOW, -0.7)}
    as_velocity = {name: lambda x, t, d=d: (x - d(x, t)) / t for name, d in denoise.items()}
    return as_velocity, paired(*denoise.values())


@pytest.mark.parametrize("average", [1, 3])
def test_equals_flow_edit(average):
    velocity, pair = velocities()
    source, times = drawn(*SHAPES[0]), levels_of(RECTIFIED_FLOW, 12)
    expected = flow_edit(velocity, source, times, standard_noise(5), average)
    steps = edited(pair, times, RECTIFIED_FLOW, source, standard_noise(5), average=average)
    torch.testing.assert_close(steps[-1].x, expected, rtol=0, atol=1e-12)


def test_equals_flow_align():
    """Steps of one length, where a pull per time is a pull per step."""
    velocity, pair = velocities()
    source, times = drawn(*SHAPES[0]), torch.linspace(0.9, 0, 13, dtype=torch.float64).tolist()
    expected = flow_align(velocity, source, times, standard_noise(5), zeta=0.01)
    steps = edited(pair, times, RECTIFIED_FLOW, source, standard_noise(5), pull=0.01 / (times[0] - times[1]))
    torch.testing.assert_close(steps[-1].x, expected, rtol=0, atol=1e-12)


def test_equals_infedit():
    law, sigmas = VARIANCE_EXPLODING, levels_of(VARIANCE_EXPLODING, 8)
    denoise = {"source": wavy(law, 0.2), "target": wavy(law, -0.7)}

    def as_eps(d):
        def eps(z, alpha_bar):
            sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
            return (z / alpha_bar**0.5 - d(z / alpha_bar**0.5, sigma)) / sigma

        return eps

    source, alphas_bar = drawn(*SHAPES[0]), [1 / (1 + sigma**2) for sigma in sigmas[:-1]]
    expected = inf_edit({name: as_eps(d) for name, d in denoise.items()}, source, alphas_bar, standard_noise(5))
    steps = edited(paired(*denoise.values()), sigmas, law, source, standard_noise(5), renewal=1.0)
    torch.testing.assert_close(steps[-1].x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"renewal": 0.4}, {"pull": 0.3}, {"average": 2}])
def test_flow_and_variance_exploding_agree(options):
    source, results = drawn(*SHAPES[0]), []
    for law in LAWS:
        pair = paired(wavy(law, 0.2), wavy(law, -0.7))
        results.append(edited(pair, levels_of(law, 10), law, source, standard_noise(5), **options)[-1].x)
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


# Closed forms.


@pytest.mark.parametrize("law", [*LAWS, NoiseLaw(flow=True, noise_scale=2.0)])
@pytest.mark.parametrize("options", [{}, {"renewal": 1.0}, {"renewal": 0.3, "pull": 0.5, "average": 2}])
@pytest.mark.parametrize("shape", SHAPES)
def test_two_equal_prompts_give_the_source_to_the_last_bit(law, options, shape):
    source, denoise = drawn(*shape).float(), wavy(law, 0.4)
    for steps in (1, 7):
        sigmas = levels_of(law, steps) if steps > 1 else [levels_of(law, 2)[0], 0.0]
        for step in edited(paired(denoise, denoise), sigmas, law, source, standard_noise(steps), **options):
            assert torch.equal(step.denoised, source)
        assert torch.equal(step.x, source)


@pytest.mark.parametrize("law", LAWS)
def test_gaussians_of_one_variance(law):
    """The change does not depend on the noise: (m_t - m_s) (1 - sqrt(S / (S + r0^2)))."""
    source, variance, top = drawn(2, 3), 0.8, 9.0
    pair = paired(gaussian(law, 1.0, variance), gaussian(law, -0.5, variance))
    exact, errors = source - 1.5 * (1 - sqrt(variance / (variance + top**2))), []
    for count in (100, 200):
        results = [edited(pair, levels_of(law, count, top, 1e-3), law, source, standard_noise(n))[-1].x for n in (1, 2)]
        torch.testing.assert_close(*results, rtol=0, atol=1e-11)
        errors.append(float((results[0] - exact).abs().max()))
    assert errors[1] < 0.01 and 1.7 < errors[0] / errors[1] < 2.3


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("of_source, of_target", [(2.0, 1.0), (1.0, 2.0)])
def test_gaussians_of_two_variances(law, of_source, of_target):
    """The mean over noises, of x_source = 1.5, m_s = 0.3, m_t = 4: an arc tangent, or a logarithm, of the levels."""
    x, m_s, m_t, top = 1.5, 0.3, 4.0, 9.0
    k, ends = sqrt(abs(of_source - of_target)), (sqrt(of_target), sqrt(of_target + top**2))
    if of_source > of_target:
        low, high = (atan(u / k) / k for u in ends)
    else:
        low, high = (log((u - k) / (u + k)) / (2 * k) for u in ends)
    expected = m_t + sqrt(of_target) * ((x - m_t) / ends[1] + (x - m_s) * (high - low))
    pair = paired(gaussian(law, m_s, of_source), gaussian(law, m_t, of_target))
    results = edited(pair, levels_of(law, 300, top, 1e-3), law, drawn(2000, 1) * 0 + x, standard_noise(1))[-1].x
    assert float(results.mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("law", LAWS)
def test_pull_does_not_depend_on_the_number_of_steps(law):
    """Estimates that differ by c everywhere, down to r1: c r1 (1/r1 - 1/r0 - pull ln(r0 (1 + r1) / r1 (1 + r0)))."""
    top, low, source = 9.0, 0.5, drawn(1, 4)
    sides = {"source": lambda x, sigma: 0 * x, "target": lambda x, sigma: 0 * x + 2.0}
    for pull in (0.0, 0.33, 1.0):
        exact = 2.0 * low * (1 / low - 1 / top - pull * log(top * (1 + low) / (low * (1 + top))))
        for count, within in ((50, 0.02), (400, 0.003)):
            sigmas = levels_of(law, count, top, low)[:-1]
            step = edited(paired(*sides.values()), sigmas, law, source, standard_noise(1), pull=pull)[-1]
            torch.testing.assert_close(step.denoised - source, torch.full_like(source, exact), rtol=0, atol=within)


@pytest.mark.parametrize("law", LAWS)
def test_renewal_forgets_what_was_before(law):
    """One step: source and change; and after more, the same change of the last level alone."""
    pair, source = paired(gaussian(law, 1.0, 0.8), lambda x, sigma: 0 * x + sigma), drawn(2, 3)
    sigmas = levels_of(law, 5)
    for part in (sigmas, [sigmas[-2], 0.0]):
        seen, noise = [], standard_noise(3)

        def kept(like, noise=noise, seen=seen):
            seen.append(noise(like))
            return seen[-1]

        step = edited(pair, part, law, source, kept, renewal=1.0)[-1]
        before = gaussian(law, 1.0, 0.8)(law.noised(source, part[-2], seen[-2]), part[-2])
        torch.testing.assert_close(step.x, source + part[-2] - before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_average_is_over_noises(law):
    """The first step's edit is the mean of those of each noise, and the results lie closer by the root of k."""
    pair, source = paired(wavy(law, 0.2), wavy(law, -0.7)), drawn(1, 4, 3, 3)
    noises, sigmas = [drawn(1, 4, 3, 3, seed=seed) for seed in range(4)], levels_of(law, 3)
    alone = [edited(pair, sigmas, law, source, lambda _, n=n: n)[0].denoised for n in noises[:3]]
    queue = iter(noises)
    start = law.noised(source, sigmas[0], next(queue))
    step = next(direct_edit(pair, start, sigmas, law, source, lambda _: next(queue), average=3))
    torch.testing.assert_close(step.denoised, sum(alone) / 3, rtol=0, atol=1e-12)
    pair, source = paired(gaussian(law, 0.0, 2.0), gaussian(law, 4.0, 1.0)), drawn(4000, 1) * 0
    one, four = (edited(pair, levels_of(law, 6), law, source, standard_noise(1), average=k)[-1].x.std() for k in (1, 4))
    assert 1.9 < one / four < 2.1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_masks(law, shape):
    """0 leaves the source to the last bit; a soft value has that share of the edit, whatever the steps."""
    source, variance, top = drawn(*shape).float(), 0.8, 9.0
    pair = paired(gaussian(law, 1.0, variance), gaussian(law, -0.5, variance))
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.0]).expand(shape[0], 1, *shape[2:])
    exact = source - 1.5 * mask * (1 - sqrt(variance / (variance + top**2)))
    steps = edited(pair, levels_of(law, 400, top, 1e-3), law, source, standard_noise(1), mask=mask)
    torch.testing.assert_close(steps[-1].x, exact, rtol=0, atol=0.01)
    outside = (mask == 0).expand(shape)
    assert all(torch.equal(step.denoised[outside], source[outside]) for step in steps)
    assert torch.equal(steps[-1].x[outside], source[outside])
    assert torch.equal(edited(pair, [*levels_of(law, 4)], law, source, standard_noise(1), mask=0 * mask)[-1].x, source)


def test_outside_the_mask_the_target_sees_the_source():
    law, source, mask, seen = RECTIFIED_FLOW, drawn(1, 6), torch.tensor([[0.0, 0.0, 0.3, 1.0, 1.0, 0.0]]), []

    def pair(x_source, x_target, sigma):
        seen.append(x_target - x_source)
        return x_source, x_source + 1.0

    edited(pair, levels_of(law, 5), law, source, standard_noise(1), mask=mask)
    assert not any(difference[mask == 0].any() for difference in seen)
    assert all((difference[mask > 0] > 0).all() for difference in seen[1:])


@pytest.mark.parametrize("law", LAWS)
def test_an_end_above_0_is_a_latent_to_sample_on_from(law):
    """There the noised source with the edit; and where both estimates are points, sampling on ends at the target's."""
    source, sigmas, mask = drawn(1, 4), levels_of(law, 12), torch.tensor([[1, 1, 0.5, 0]], dtype=torch.float64)
    here, there = (lambda x, sigma: source), (lambda x, sigma: source + 3.0)
    step = edited(paired(here, there), sigmas[:7], law, source, standard_noise(2), mask=mask)[-1]
    noise = standard_noise(2)
    newest = [noise(source) for _ in range(7)][-1]
    expected = law.noised(source, sigmas[6], newest) + law.alpha(sigmas[6]) * (step.denoised - source)
    assert step.sigma == sigmas[6]
    torch.testing.assert_close(step.x, expected, rtol=0, atol=1e-12)
    done = 1 - law.kept(sigmas[0], sigmas[6])
    torch.testing.assert_close(step.denoised, source + mask * (3.0 * done), rtol=0, atol=1e-12)
    torch.testing.assert_close(last(ddim(there, step.x, sigmas[6:], law)), source + 3.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_equals_its_samples_alone(shape):
    law, source = RECTIFIED_FLOW, drawn(*shape).float()
    sigmas, pair = [1.0, *levels_of(law, 5)], paired(gaussian(law, 1.0, 0.5), gaussian(law, -1.0, 0.9))
    start = drawn(*shape, seed=4).float()

    def run(part):
        noise = SampleNoise(3, "edit", start[part], source[part])
        return last(direct_edit(pair, start[part], sigmas, law, source[part], noise, average=2))

    alone = torch.cat([run(slice(item, item + 1)) for item in range(shape[0])])
    assert torch.equal(run(slice(None)), alone) and not torch.equal(alone[:1], alone[1:])


@pytest.mark.parametrize("average", [1, 3])
def test_model_calls_are_counted(average):
    calls = []

    def pair(x_source, x_target, sigma):
        calls.append(sigma)
        return x_source, x_target

    steps = edited(pair, [3.0, 1.0, 0.5, 0.0], VARIANCE_EXPLODING, drawn(1, 2), standard_noise(0), average=average)
    assert [step.sigma for step in steps] == [1.0, 0.5, 0.0]
    assert len(calls) == model_calls(3, average) and calls[::average] == [3.0, 1.0, 0.5]


@pytest.mark.parametrize("name, value", [("renewal", -1), ("renewal", 2), ("pull", -1), ("pull", 2), ("average", 0)])
def test_bad_settings_are_refused_before_the_model_runs(name, value):
    def never(x_source, x_target, sigma):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match="renewal is"):
        edited(never, [1.0, 0.0], VARIANCE_EXPLODING, drawn(1, 2), standard_noise(0), **{name: value})
