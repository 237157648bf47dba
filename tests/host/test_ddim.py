import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.tests import checks, oracles
from steer.tests.host_models import EPS, FLOW, V, closed_form, for_shape, mean_conditioning, relative


def ddim(eta=0.0):
    return SteerDDIMSampler.execute(eta)[0]


@pytest.fixture
def guider(shapes):
    model, clip, _ = shapes
    texts = ("a red circle on a blue background", "a green star on a white background")
    return host_guider(model, *(encode(clip, text) for text in texts), 5.0)


def test_equals_euler_of_the_host(shapes, guider):
    sigmas, noise = sigmas_of(shapes[0], 6), noise_of((2, 4, 16, 16))
    euler = comfy.samplers.sampler_object("euler")
    assert relative(run(guider, ddim(), sigmas, noise), run(guider, euler, sigmas, noise)) < 1e-5


@pytest.mark.parametrize("law", [EPS, V, FLOW])
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 4, 3, 6, 5)])
def test_equals_euler_on_every_law_and_on_video(shapes, monkeypatch, law, shape):
    model = for_shape(monkeypatch, closed_form(shapes[0], law), shape)
    guider = host_guider(model, mean_conditioning(1), mean_conditioning(0), 3.0)
    sigmas, noise, latent = sigmas_of(model, 10), noise_of(shape), noise_of(shape, 1)
    for part in (sigmas, sigmas[4:], sigmas[2:8]):
        expected = run(guider, comfy.samplers.sampler_object("euler"), part, noise, latent)
        assert relative(run(guider, ddim(), part, noise, latent), expected) < 1e-5


def test_a_noise_mask_is_heeded_as_by_the_host(shapes, guider):
    sigmas, noise, latent = sigmas_of(shapes[0], 6), noise_of((1, 4, 16, 16)), noise_of((1, 4, 16, 16), 1)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:10] = 1
    euler = comfy.samplers.sampler_object("euler")
    expected = run(guider, euler, sigmas, noise, latent, mask)
    assert relative(run(guider, ddim(), sigmas, noise, latent, mask), expected) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_batch_equals_singles_and_repeats_bitwise(shapes, guider, eta):
    sigmas, noise = sigmas_of(shapes[0], 6), noise_of((2, 4, 16, 16))
    together = run(guider, ddim(eta), sigmas, noise)
    alone = torch.cat([run(guider, ddim(eta), sigmas, noise[i : i + 1]) for i in range(2)])
    assert relative(together, alone) < 1e-5
    assert torch.equal(together, run(guider, ddim(eta), sigmas, noise))


def test_ancestral_samples_the_data_distribution(shapes):
    model = closed_form(shapes[0], FLOW)
    guider = host_guider(model, mean_conditioning(1), mean_conditioning(1), 1.0)
    samples = run(guider, ddim(1.0), sigmas_of(model, 200), noise_of((1, 4, 100, 100)))
    samples = model.model.process_latent_in(samples)
    assert abs(samples.mean() - 1) < 0.02 and abs(samples.var() - 0.5) < 0.03


def test_preview_gets_every_step(shapes, guider):
    seen = []
    run(guider, ddim(), sigmas_of(shapes[0], 7), noise_of((1, 4, 16, 16)),
        callback=lambda i, denoised, x, total: seen.append((i, tuple(denoised.shape), total)))  # fmt: skip
    assert seen == [(i, (1, 4, 16, 16), 7) for i in range(7)]


def on_family(family):
    guider, sigmas = oracles.guider_of(family, 3.0), sigmas_of(family.model(), 4)
    ours = run(guider, SteerDDIMSampler.execute(0.0)[0], sigmas, oracles.noise_for(family))
    assert relative(ours, run(guider, oracles.EULER, sigmas, oracles.noise_for(family))) < 1e-4
    assert relative(run(guider, SteerDDIMSampler.execute(1.0)[0], sigmas, oracles.noise_for(family)), ours) > 1e-3


ORACLE = {
    "SteerDDIMSampler": ("eta 0 equals the host's euler", on_family),
}
CHECK = {
    "SteerDDIMSampler": (checks.sampler, checks.OF_GUIDER),
}
