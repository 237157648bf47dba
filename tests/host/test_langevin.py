import logging

import pytest
import torch
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.host import run as host_run
from steer.nodes.langevin import SteerLangevinSampler
from steer.tests import checks, oracles
from steer.tests.closed_form import at_rest
from steer.tests.host_models import EPS, FLOW, V, closed_form, for_shape, hole, mean_conditioning, relative

LAWS = [EPS, V, FLOW]


def langevin(inner=3, momentum=0.8):
    return SteerLangevinSampler.execute(inner, momentum)[0]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.8])
def test_the_variance_at_rest_is_exact(shapes, monkeypatch, law, ratio, momentum):
    """In float32, by which a move's matrix is read off the host's callback."""
    sigma, shape = 0.4, (1, 4, 1, 1)
    alpha = 1.0 - sigma if law == FLOW else 1.0
    variance = ratio * sigma**2 / alpha**2
    model = closed_form(shapes[0], law, variance)
    guider, drawn = host_guider(model, mean_conditioning(0), mean_conditioning(0), 1.0), []

    class Drawn:
        def __init__(self, seed, stream, *starts):
            self.stream = stream

        def __call__(self, like):
            return torch.full_like(like, drawn.pop(0) if self.stream == "step" and drawn else 0.0)

    monkeypatch.setattr(host_run, "SampleNoise", Drawn)

    def moved(x, velocity, fresh):
        drawn[:], seen, sigmas = [velocity, fresh], [], torch.tensor([sigma, 0.0])
        run(guider, langevin(3, momentum), sigmas, torch.full(shape, x / sigma) + 1e-30, torch.zeros(shape),
            torch.ones(1, 1, 1, 1), callback=lambda i, denoised, x, total: seen.append(x))  # fmt: skip
        return seen[0][0, 0, 0, 0]

    rest, _ = at_rest(moved, sigma, alpha**2 * variance / (alpha**2 * variance + sigma**2), 2000)
    assert rest == pytest.approx(alpha**2 * variance + sigma**2, rel=2e-5)


@pytest.mark.parametrize("law", [EPS, FLOW])
@pytest.mark.parametrize("inner", [1, 3])
def test_calls_are_logged_and_made(shapes, law, inner, caplog):
    model, rows = counted(closed_form(shapes[0], law))
    guider, sigmas = host_guider(model, mean_conditioning(1), mean_conditioning(0), 1.0), sigmas_of(model, 10)
    progress = []
    with caplog.at_level(logging.INFO, logger="steer"):
        run(guider, langevin(inner), sigmas, noise_of((1, 4, 16, 16)), mask=hole(),
            callback=lambda i, denoised, x, total: progress.append((i, total)))  # fmt: skip
    below = int((sigmas[:-1] < (0.5 if law == FLOW else 1.0)).sum())
    calls = 10 + below * (2 * inner - 2)
    assert 1 < below < 9 and len(rows) == calls and progress == [(i, calls) for i in range(calls)]
    assert f"{calls} model calls for 10 steps" in caplog.text


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [(2, 4, 12, 16), (1, 4, 3, 12, 16)])
def test_the_kept_part_is_the_source(shapes, monkeypatch, law, shape):
    model = for_shape(monkeypatch, closed_form(shapes[0], law), shape)
    guider = host_guider(model, mean_conditioning(3), mean_conditioning(0), 1.0)
    latent, mask = noise_of(shape, 1), hole(height=12)
    out = run(guider, langevin(), sigmas_of(model), noise_of(shape), latent, mask)
    kept = (mask == 0).reshape(1, 1, *[1] * (len(shape) - 4), 12, 16).expand(shape)
    torch.testing.assert_close(out[kept], latent[kept], rtol=1e-6, atol=1e-6)
    assert abs(model.model.process_latent_in(out)[~kept].mean() - 3) < 0.2


@pytest.mark.parametrize("law", LAWS)
def test_all_unknown_with_one_call_is_deterministic_sampling(shapes, law):
    model = closed_form(shapes[0], law)
    guider, sigmas, noise = host_guider(model, mean_conditioning(1), mean_conditioning(0), 1.0), sigmas_of(model), 0
    noise = noise_of((1, 4, 16, 16))
    painted = run(guider, langevin(1), sigmas, noise, mask=torch.ones(1, 1, 16, 16))
    assert torch.equal(painted, run(guider, SteerDDIMSampler.execute(0.0)[0], sigmas, noise))


def test_batch_with_its_own_masks_equals_singles_and_repeats_bitwise(shapes, guider):
    sigmas, mask = sigmas_of(shapes[0], 4), hole(2)
    noise, latent = noise_of((2, 4, 16, 16)), noise_of((2, 4, 16, 16), 1)
    together = run(guider, langevin(), sigmas, noise, latent, mask)
    one = slice(0, 1), slice(1, 2)
    alone = torch.cat([run(guider, langevin(), sigmas, noise[i], latent[i], mask[i]) for i in one])
    assert relative(together, alone) < 1e-5
    assert torch.equal(together, run(guider, langevin(), sigmas, noise, latent, mask))


def test_moves_are_not_guided_and_spare_the_negatives_rows(shapes):
    """Only a level's last call is guided; the others are the positive's alone."""
    model, rows = counted(shapes[0])
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    sigmas, noise, latent = torch.tensor([4.0, 0.5, 0.0]), noise_of((1, 4, 16, 16)), noise_of((1, 4, 16, 16), 1)

    def previews(cfg):
        seen = []
        run(host_guider(model, *conds, cfg), langevin(2), sigmas, noise, latent, hole(),
            callback=lambda i, denoised, x, total: seen.append(denoised))  # fmt: skip
        return seen

    guided = previews(5.0)
    assert sum(rows) == 2 + 1 + 1 + 2
    plain = previews(1.0)
    assert relative(guided[0], plain[0]) > 1e-3
    rows.clear()
    # from one level on, both start from the same: the moves agree to the last bit, the last calls do not
    sigmas = sigmas[1:]
    guided, plain = previews(5.0), previews(1.0)
    assert torch.equal(guided[0], plain[0]) and torch.equal(guided[1], plain[1])
    assert relative(guided[2], plain[2]) > 1e-3


def on_family(family):
    guider, sigmas, source = oracles.guider_of(family, 2.0), oracles.from_level(family), family.picture()
    noise, mask = oracles.noise_for(family), oracles.mask_of(family)
    out = run(guider, langevin(2, 0.5), sigmas, noise, source, mask)
    torch.testing.assert_close(oracles.outside(family, out), oracles.outside(family, source), rtol=1e-5, atol=1e-5)
    assert relative(out, source) > 1e-2
    plain = run(guider, oracles.EULER, sigmas, noise, source)
    assert relative(run(guider, langevin(1), sigmas, noise, source, torch.ones_like(mask)), plain) < 1e-4


ORACLE = {
    "SteerLangevinSampler": (
        "outside the mask the source; all masked, with one call a step: the host's euler",
        on_family,
    ),
}
CHECK = {
    "SteerLangevinSampler": (checks.keeping_sampler, checks.OF_GUIDER),
}
USUAL = {
    "SteerLangevinSampler": {"inner": (1, 2), "momentum": (0.0, 0.5)},
}
