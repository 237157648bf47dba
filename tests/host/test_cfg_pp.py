"""CFG++ samplers of the host, which read the unconditional prediction after guidance and renoise with it."""

import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.cases import in_pairs
from steer.tests.companions import EULER, GREEN, RED, SHAPE, guided
from steer.tests.host_models import EPS, FLOW, V, closed_form, hole, mean_conditioning, relative

CFG_PP = [name for name in comfy.samplers.SAMPLER_NAMES if name.endswith("cfg_pp")]


@pytest.mark.parametrize("name, law, end, negative_scale", in_pairs(CFG_PP, [EPS, V, FLOW], [1.0, 0.5], [0.0, 0.5]))
def test_cfg_pp_samplers_renoise_with_the_empty(shapes, name, law, end, negative_scale):
    """All Gaussians share a variance: the host's guider with the empty as negative, its positive moved away from ours.

    Outside of the interval the host's at cfg 1, where these samplers ask for the negative's all the same.
    """
    model, cfg, (positive, negative, empty) = closed_form(shapes[0], law), 3.0, (1.0, -4.0, 0.25)
    conds = [mean_conditioning(mean) for mean in (positive, negative, empty)]
    ours = SteerCFGGuider.execute(model, *conds[:2], cfg, 0.0, end, negative_scale, conds[2])[0]
    moved = mean_conditioning(positive - negative_scale / cfg * (negative - empty))
    hosts = host_guider(model, moved, conds[2], cfg)
    within, last = hosts.predict_noise, model.get_model_object("model_sampling").percent_to_sigma(end)

    def predict_noise(x, timestep, model_options, seed):
        if float(timestep.max()) >= last:
            return within(x, timestep, model_options, seed)
        return comfy.samplers.sampling_function(hosts.inner_model, x, timestep, hosts.conds["negative"],
                                                hosts.conds["alone"], 1.0, model_options, seed)  # fmt: skip

    hosts.inner_set_conds({"alone": conds[0]})
    hosts.predict_noise = predict_noise
    sigmas, noise, sampler = sigmas_of(model, 6), noise_of((2, 4, 5, 5)), comfy.samplers.sampler_object(name)
    assert relative(run(ours, sampler, sigmas, noise), run(hosts, sampler, sigmas, noise)) < 1e-5


@pytest.mark.parametrize("name, law, blend", in_pairs(CFG_PP, [EPS, FLOW], ["blended", "trajectory"]))
def test_what_is_kept_is_the_source_in_every_call_and_at_the_end(shapes, name, law, blend):
    """They renoise with the model's own prediction outside of the mask too, and the next call sees it put right."""
    model, seen, known = closed_form(shapes[0], law), [], noise_of((1, 4, 16, 16), 1)
    sigmas, mask = sigmas_of(model, 8), hole()
    conds, inner = (mean_conditioning(3), mean_conditioning(0)), comfy.samplers.sampler_object(name)
    sampler, noise = SteerBlendedSampler.execute(inner, 2)[0], noise_of((1, 4, 16, 16))
    if blend == "trajectory":
        source = host_guider(model, *conds, 1.0)
        _, given, inversion = SteerDDIMInversion.execute(source, sigmas, {"samples": known}, 4, 1e-4, False).args
        sampler = SteerTrajectoryBlendSampler.execute(inner, inversion)[0]
        noise = given.generate_noise({"samples": known})
    answer = model.model_options["model_function_wrapper"]
    model.set_model_unet_function_wrapper(lambda apply, args: seen.append(args) or answer(apply, args))
    out = run(host_guider(model, *conds, 3.0), sampler, sigmas, noise, known, mask)
    kept, source = (mask == 0).expand_as(out), model.model.process_latent_in(known)
    kept_in_all = kept.clone()
    kept_in_all[..., 2:11, 1:12] = False  # the grown mask
    assert relative(out[kept], known[kept]) < 1e-6 and out.isfinite().all()
    for args in seen:
        x, level = args["input"][:1].cpu(), float(args["timestep"][0])
        alpha = 1.0 - level if law == FLOW else 1.0
        if blend == "trajectory":
            index = min(range(len(sigmas)), key=lambda i: abs(float(sigmas[i]) - level))
            if abs(float(sigmas[index]) - level) < 1e-4 * level:  # else between two levels
                assert relative(x[kept], inversion.latents[index][kept]) < 1e-5
        else:
            assert abs(float(((x - alpha * source)[kept_in_all] / level).std()) - 1.0) < 0.15


@pytest.mark.parametrize("name", CFG_PP)
def test_prompt_to_prompt_with_the_gates_at_0_is_two_runs(shapes, name):
    """And else the source stays the source."""
    sampler, sigmas, noise = comfy.samplers.sampler_object(name), sigmas_of(shapes[0], 3), noise_of(SHAPE)
    source, target, edit = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
    negative = encode(shapes[1], "")
    alone = [run(host_guider(shapes[0], each, negative, 3.0), sampler, sigmas, noise) for each in (source, target)]
    for ends, same in (((0.0, 0.0), True), ((0.8, 0.4), False)):
        guider = SteerPromptToPromptGuider.execute(shapes[0], source, target, negative, 3.0, edit, *ends)[0]
        first, second = run(guider, sampler, sigmas, noise).chunk(2)
        assert relative(first, alone[0]) < 3e-5 and (relative(second, alone[1]) < 1e-4) == same


def test_a_gradient_changes_the_estimate_and_not_what_it_is_renoised_with(shapes):
    """One step to 1: as far off as the estimate is, which a step to 0 gives."""
    noise, sampler = noise_of(SHAPE), comfy.samplers.sampler_object("euler_cfg_pp")
    guider = host_guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], ""), 3.0)
    changes = [
        run(guided(guider, 0.5), *given, noise) - run(guider, *given, noise)
        for given in ((sampler, torch.tensor([2.0, 1.0])), (EULER, torch.tensor([2.0, 0.0])))
    ]
    assert relative(*changes) < 1e-5
