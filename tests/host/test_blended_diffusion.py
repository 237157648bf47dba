import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import host_guider, noise_of, run, sigmas_of
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.tests import checks, oracles
from steer.tests.cases import in_pairs
from steer.tests.host_models import EPS, FLOW, V, closed_form, for_shape, hole, mean_conditioning, relative


def blended(name="euler", dilation=0):
    return SteerBlendedSampler.execute(comfy.samplers.sampler_object(name), dilation)[0]


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_any_sampler_of_the_host_generates_inside_and_keeps_outside(shapes, name):
    model = closed_form(shapes[0], EPS)
    guider = host_guider(model, mean_conditioning(3), mean_conditioning(3), 1.0)
    latent, mask = noise_of((1, 4, 16, 16), 1), hole()
    out = run(guider, blended(name), sigmas_of(model), noise_of((1, 4, 16, 16)), latent, mask)
    kept = (mask == 0).expand_as(out)
    torch.testing.assert_close(out[kept], latent[kept], rtol=1e-6, atol=1e-6)
    assert abs(model.model.process_latent_in(out)[~kept].mean() - 3) < 0.4


@pytest.mark.parametrize("name, law, shape", in_pairs(["euler", "euler_ancestral", "dpmpp_2m", "heun"], [V, FLOW],
                         [(2, 4, 16, 16), (1, 4, 3, 16, 16)]))  # fmt: skip
def test_every_law_and_video(shapes, monkeypatch, law, name, shape):
    model = for_shape(monkeypatch, closed_form(shapes[0], law), shape)
    guider = host_guider(model, mean_conditioning(3), mean_conditioning(0), 1.0)
    latent, mask = noise_of(shape, 1), hole()
    out = run(guider, blended(name, dilation=2), sigmas_of(model), noise_of(shape), latent, mask)
    kept = (mask == 0).reshape(1, 1, *[1] * (len(shape) - 4), 16, 16).expand(shape)
    torch.testing.assert_close(out[kept], latent[kept], rtol=1e-6, atol=1e-6)
    assert abs(model.model.process_latent_in(out)[~kept].mean() - 3) < 0.3


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_a_partial_run_keeps_the_source_at_its_level(shapes, law):
    """Stopped early, then gone on with: what is kept is the source with noise of that level, in the host's scale."""
    model = closed_form(shapes[0], law)
    guider = host_guider(model, mean_conditioning(3), mean_conditioning(0), 1.0)
    latent, mask, sigmas = noise_of((1, 4, 64, 64), 1), torch.zeros(1, 1, 64, 64), sigmas_of(model)
    mask[..., :8] = 1
    half = run(guider, blended(), sigmas[:11], noise_of((1, 4, 64, 64)), latent, mask)
    sampling, level = model.get_model_object("model_sampling"), sigmas[10]
    x = sampling.noise_scaling(level, torch.zeros_like(half), model.model.process_latent_in(half))
    alpha = 1 - level if law == FLOW else 1.0
    residual = (x - alpha * model.model.process_latent_in(latent))[..., 8:]
    assert abs(residual.std() / level - 1) < 0.03


def test_all_masked_is_the_inner_sampler_bitwise(shapes, guider):
    sigmas, noise, everything = sigmas_of(shapes[0]), noise_of((1, 4, 16, 16)), torch.ones(1, 1, 16, 16)
    plain = run(guider, comfy.samplers.sampler_object("dpmpp_2m"), sigmas, noise)
    assert torch.equal(run(guider, blended("dpmpp_2m"), sigmas, noise, mask=everything), plain)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "steer"])
def test_batch_with_its_own_masks_equals_singles_and_repeats_bitwise(shapes, guider, sampler):
    inner = SteerDDIMSampler.execute(1.0)[0] if sampler == "steer" else comfy.samplers.sampler_object(sampler)
    sampler = SteerBlendedSampler.execute(inner, 1)[0]
    sigmas, noise, latent, mask = (
        sigmas_of(shapes[0], 5),
        noise_of((2, 4, 16, 16)),
        noise_of((2, 4, 16, 16), 1),
        hole(2),
    )
    together = run(guider, sampler, sigmas, noise, latent, mask)
    one = slice(0, 1), slice(1, 2)
    alone = torch.cat([run(guider, sampler, sigmas, noise[i], latent[i], mask[i]) for i in one])
    assert relative(together, alone) < 1e-5
    assert torch.equal(together, run(guider, sampler, sigmas, noise, latent, mask))


def on_family(family):
    guider, sigmas, source = oracles.guider_of(family, 2.0), oracles.from_level(family), family.picture()
    sampler = SteerBlendedSampler.execute(oracles.EULER, 0)[0]
    out = run(guider, sampler, sigmas, oracles.noise_for(family), source, oracles.mask_of(family))
    torch.testing.assert_close(oracles.outside(family, out), oracles.outside(family, source), rtol=1e-5, atol=1e-5)
    plain = run(guider, oracles.EULER, sigmas, oracles.noise_for(family), source)
    assert relative(out, plain) > 1e-3
    everything = torch.ones_like(oracles.mask_of(family))
    assert torch.equal(run(guider, sampler, sigmas, oracles.noise_for(family), source, everything), plain)


ORACLE = {
    "SteerBlendedSampler": ("outside the mask the source; all masked: the inner sampler, bit for bit", on_family),
}
CHECK = {
    "SteerBlendedSampler": (checks.keeping_sampler, checks.OF_GUIDER),
}
USUAL = {
    "SteerBlendedSampler": {"dilation": (0, 1, 3)},
}
