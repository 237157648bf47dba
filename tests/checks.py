"""Whether what a node gives is right in itself, whatever it was given: what the nodes' checks share. See `matrices.py`.

A check is a function of the world, the node's inputs, those of the run afterwards, and the node's output.
"""

import comfy.sample
import comfy.sampler_helpers
import torch

from ..lab.comfy.runs import host_guider, sampled
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.runs.prompt_to_prompt import PromptToPromptGuider

RUN, OF_GUIDER = ("noise", "sampler", "sigmas", "latent_image"), ("noise", "guider", "sigmas", "latent_image")
RATIO = "downscale_ratio_spacial"  # newer hosts take it out


def two_prompts(guider) -> bool:
    return isinstance(getattr(guider, "_guider", guider), PromptToPromptGuider)


def check_sampled(guider, sampler, sigmas, latent_image, result, keeps=None):
    """Finite and of the shape given, or twice for two prompts; outside the mask what `keeps` makes of the source."""
    samples, source = result["samples"], latent_image["samples"]
    assert {*result} | {RATIO} == {*latent_image, RATIO}
    if samples.is_nested:
        assert all(torch.isfinite(each).all() for each in samples.unbind())
        return
    source = comfy.sample.fix_empty_latent_channels(guider.model_patcher, source)
    double = two_prompts(guider) and len(sigmas)
    assert samples.shape == (source.shape[0] * (2 if double else 1), *source.shape[1:])
    if not len(sigmas):
        return  # the host gives back what it was given
    assert torch.isfinite(samples).all()
    if keeps is not None and float(sigmas[-1]) == 0.0 and not double:
        kept = keeps(source).float()
        mask = comfy.sampler_helpers.prepare_mask(latent_image["noise_mask"].float(), source.shape, "cpu")
        tolerance = 1e-5 * float(kept.abs().max())
        torch.testing.assert_close(samples.float()[mask == 0], kept[mask == 0], rtol=0, atol=tolerance)


def run_and_check(run: dict, keeps=None, **also):
    everything = {**run, **also}
    result = sampled(**everything)
    everything.pop("noise")
    check_sampled(**everything, result=result, keeps=keeps)


def run_by_host(run: dict, model, plain_model, positive, negative):
    """By the host's guider. Where its sampler comes to no numbers, it has to do so on the plain model as well."""
    try:
        run_and_check(run, guider=host_guider(model, positive, negative, 3.0))
    except AssertionError:
        plain = sampled(**run, guider=host_guider(plain_model, positive, negative, 3.0))
        if torch.isfinite(plain["samples"]).all():
            raise


def check_picture(picture, batch, height, width):
    assert picture.shape == (batch, height, width, 3) and picture.is_floating_point()
    assert 0.0 <= float(picture.min()) and float(picture.max()) <= 1.0


def check_mask(mask, height, width):
    assert mask.ndim == 3 and mask.shape[1:] == (height, width)
    assert 0.0 <= float(mask.min()) and float(mask.max()) <= 1.0


def check_conditioning(conditioning):
    assert conditioning
    for tensor, options in conditioning:
        assert tensor.ndim == 3 and torch.isfinite(tensor).all() and isinstance(options, dict)


def guider(world, given, run, output):
    run_and_check(run, guider=output[0])


def sampler(world, given, run, output):
    run_and_check(run, sampler=output[0])


def keeping_sampler(world, given, run, output):
    run_and_check(run, sampler=output[0], keeps=lambda source: source)


def loss(world, given, run, output):
    run = dict(run)
    run_and_check({**run, "guider": SteerGradientGuider.execute(run["guider"], output[0], 5.0, 0.0, 1.0, False)[0]})


def stitched(world, given, run, output):
    source, edited, mask = given["source"], given["edited"], given["mask"]
    picture, most = output[0], max(len(source), len(edited))
    assert picture.shape[1:] == source.shape[1:] and len(picture) >= most and torch.isfinite(picture).all()
    if all(0.0 <= float(each.min()) and float(each.max()) <= 1.0 for each in (source, edited)):
        assert 0.0 <= float(picture.min()) and float(picture.max()) <= 1.0
    if mask.shape[-2:] == source.shape[1:3] and given.get("feather", 0) >= 0:
        outside = (mask.reshape(-1, *mask.shape[-2:]) <= 0).expand(len(picture), -1, -1)
        assert torch.equal(picture[outside], source.expand_as(picture)[outside].to(picture.dtype))
