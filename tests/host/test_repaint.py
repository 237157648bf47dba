import logging

import pytest
import torch
from steer.lab.comfy.runs import counted, host_guider, noise_of, run, sigmas_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.repaint import SteerRePaintSampler
from steer.tests import checks, oracles
from steer.tests.host_models import EPS, FLOW, V, closed_form, for_shape, hole, mean_conditioning, relative


def repaint(resamples=3, jump_length=5, eta=1.0):
    return SteerRePaintSampler.execute(resamples, jump_length, eta)[0]


@pytest.mark.parametrize("steps, calls", [(20, 110), (10, 10)])
def test_calls_are_logged_and_made(shapes, steps, calls, caplog):
    model, rows = counted(closed_form(shapes[0], EPS))
    guider = host_guider(model, mean_conditioning(1), mean_conditioning(0), 1.0)
    progress = []
    with caplog.at_level(logging.INFO, logger="steer"):
        run(guider, repaint(10, 10), sigmas_of(model, steps), noise_of((1, 4, 16, 16)), mask=hole(),
            callback=lambda i, denoised, x, total: progress.append((i, total)))  # fmt: skip
    assert len(rows) == calls and progress == [(i, calls) for i in range(calls)]
    assert f"{calls} model calls" in caplog.text
    assert ("too few" in caplog.text) == (steps <= 10)


@pytest.mark.parametrize("law", [EPS, V, FLOW])
@pytest.mark.parametrize("shape", [(2, 4, 12, 16), (1, 4, 3, 12, 16)])
def test_the_kept_part_is_the_source(shapes, monkeypatch, law, shape):
    model = for_shape(monkeypatch, closed_form(shapes[0], law), shape)
    guider = host_guider(model, mean_conditioning(3), mean_conditioning(0), 1.0)
    latent, mask = noise_of(shape, 1), hole(height=12)
    out = run(guider, repaint(), sigmas_of(model), noise_of(shape), latent, mask)
    kept = (mask == 0).reshape(1, 1, *[1] * (len(shape) - 4), 12, 16).expand(shape)
    torch.testing.assert_close(out[kept], latent[kept], rtol=1e-6, atol=1e-6)
    assert abs(model.model.process_latent_in(out)[~kept].mean() - 3) < 0.2


def test_all_unknown_once_is_ancestral_sampling_bitwise(shapes, guider):
    sigmas, noise = sigmas_of(shapes[0], 8), noise_of((1, 4, 16, 16))
    painted = run(guider, repaint(1), sigmas, noise, mask=torch.ones(1, 1, 16, 16))
    assert torch.equal(painted, run(guider, SteerDDIMSampler.execute(1.0)[0], sigmas, noise))


@pytest.mark.parametrize("law", [EPS, V, FLOW])
@pytest.mark.parametrize("first", [0, 6])
def test_without_a_mask_once_is_ancestral_sampling_bitwise(shapes, law, first, caplog):
    """From the top and from a level below, where the source is noised as for any sampler."""
    guider = host_guider(closed_form(shapes[0], law), mean_conditioning(1), mean_conditioning(0), 1.0)
    sigmas, noise, source = sigmas_of(guider.model_patcher)[first:], noise_of((2, 4, 8, 8)), noise_of((2, 4, 8, 8), 1)
    out = run(guider, repaint(1), sigmas, noise, source)
    assert torch.equal(out, run(guider, SteerDDIMSampler.execute(1.0)[0], sigmas, noise, source))
    assert "no noise mask" in caplog.text


def test_without_a_mask_time_travel_is_an_all_ones_mask(shapes, guider):
    sigmas, noise = sigmas_of(shapes[0]), noise_of((2, 4, 16, 16))
    travelled = run(guider, repaint(), sigmas, noise)
    assert torch.equal(travelled, run(guider, repaint(), sigmas, noise, mask=torch.ones(1, 1, 16, 16)))
    assert relative(travelled, run(guider, repaint(1), sigmas, noise)) > 0.1


def test_batch_with_its_own_masks_equals_singles_and_repeats_bitwise(shapes, guider):
    sigmas, noise, latent, mask = (
        sigmas_of(shapes[0], 7),
        noise_of((2, 4, 16, 16)),
        noise_of((2, 4, 16, 16), 1),
        hole(2),
    )
    together = run(guider, repaint(), sigmas, noise, latent, mask)
    one = slice(0, 1), slice(1, 2)
    alone = torch.cat([run(guider, repaint(), sigmas, noise[i], latent[i], mask[i]) for i in one])
    assert relative(together, alone) < 1e-5
    assert torch.equal(together, run(guider, repaint(), sigmas, noise, latent, mask))


def on_family(family):
    guider, sigmas, source = oracles.guider_of(family, 2.0), oracles.from_level(family), family.picture()
    out = run(
        guider,
        SteerRePaintSampler.execute(2, 1, 1.0)[0],
        sigmas,
        oracles.noise_for(family),
        source,
        oracles.mask_of(family),
    )
    torch.testing.assert_close(oracles.outside(family, out), oracles.outside(family, source), rtol=1e-5, atol=1e-5)
    assert relative(out, source) > 1e-2
    everything, once = torch.ones_like(oracles.mask_of(family)), SteerRePaintSampler.execute(1, 1, 0.0)[0]
    plain = run(guider, oracles.EULER, sigmas, oracles.noise_for(family), source)
    assert relative(run(guider, once, sigmas, oracles.noise_for(family), source, everything), plain) < 1e-4


ORACLE = {
    "SteerRePaintSampler": (
        "outside the mask the source; all masked, once and without noise: the host's euler",
        on_family,
    ),
}
CHECK = {
    "SteerRePaintSampler": (checks.keeping_sampler, checks.OF_GUIDER),
}
USUAL = {
    "SteerRePaintSampler": {"resamples": (1, 2), "jump_length": (1, 2, 10)},
}
