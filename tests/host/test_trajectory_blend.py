from dataclasses import replace

import comfy.model_management as management
import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, interrupted, noise_of, sampled, sigmas_of
from steer.lab.world.data import caption, render, scene_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.sdedit import SteerSDEditSigmas
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests import checks, oracles
from steer.tests.cases import in_pairs
from steer.tests.host_models import EPS, FLOW, V, closed_form, for_shape, hole, mean_conditioning, relative

SCENES = [scene_of("heart", "red", "blue", 50, 60, 30), scene_of("star", "yellow", "black", 80, 70, 26)]
RANDOM = Noise(noise_of((1, 4, 16, 16), 7))
SHAPE = (1, 4, 16, 16)


@pytest.fixture
def pictures(shapes):
    pixels = torch.stack([torch.from_numpy(render(scene).copy()) for scene in SCENES]).float() / 255
    return {"samples": shapes[2].encode(pixels)}


def prompted(shapes, model, texts, cfg):
    rows = torch.cat([encode(shapes[1], text)[0][0] for text in texts])
    return host_guider(model, [[rows, {}]], encode(shapes[1], ""), cfg)


def inverted(guider, sigmas, latent, refine=0):
    return SteerDDIMInversion.execute(guider, sigmas, latent, refine, 1e-4, check=False).args


def blending(inversion, inner="euler"):
    inner = comfy.samplers.sampler_object(inner) if isinstance(inner, str) else inner
    return SteerTrajectoryBlendSampler.execute(inner, inversion)[0]


def sample(guider, sampler, sigmas, latent, noise, mask):
    latent = {"samples": latent["samples"], **({} if mask is None else {"noise_mask": mask})}
    return sampled(noise, guider, sampler, sigmas, latent)["samples"]


def outside(latent, mask):
    return (mask == 0).reshape(-1, 1, *[1] * (latent.ndim - 4), *mask.shape[-2:]).expand(latent.shape)


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_any_sampler_of_the_host_edits_inside_and_ends_at_the_source_outside(shapes, name):
    model = closed_form(shapes[0], EPS)
    sigmas, given = sigmas_of(model), {"samples": noise_of(SHAPE, 1)}
    latent, noise, inversion = inverted(host_guider(model, *[mean_conditioning(0)] * 2, 1.0), sigmas, given)
    edit = host_guider(model, mean_conditioning(3), mean_conditioning(3), 1.0)
    out = sample(edit, blending(inversion, name), sigmas, latent, noise, hole())
    kept = outside(out, hole())
    assert torch.equal(out[kept], latent["samples"][kept])
    assert abs(model.model.process_latent_in(out)[~kept].mean() - 3) < 0.4


@pytest.mark.parametrize("name, law, shape", in_pairs(["euler", "euler_ancestral", "dpmpp_2m", "heun", "dpm_2"],
                         [V, FLOW], [(2, 4, 16, 16), (1, 4, 3, 16, 16)]))  # fmt: skip
def test_every_law_and_video(shapes, monkeypatch, law, name, shape):
    model = for_shape(monkeypatch, closed_form(shapes[0], law), shape)
    sigmas, given = sigmas_of(model), {"samples": noise_of(shape, 1)}
    latent, noise, inversion = inverted(host_guider(model, *[mean_conditioning(0)] * 2, 1.0), sigmas, given)
    edit = host_guider(model, mean_conditioning(3), mean_conditioning(3), 1.0)
    out = sample(edit, blending(inversion, name), sigmas, latent, noise, hole())
    kept = outside(out, hole())
    assert torch.equal(out[kept], latent["samples"][kept])
    assert abs(model.model.process_latent_in(out)[~kept].mean() - 3) < 0.3


@pytest.mark.parametrize("law, inner, first", in_pairs([EPS, V, FLOW], ["euler", "dpm_2", "steer"], [0, 6]))
def test_the_model_sees_the_trajectory_outside(shapes, law, inner, first):
    """From any recorded level; between levels (dpm_2) on the straight line from one to the next."""
    plain = closed_form(shapes[0], law)
    sigmas, given = sigmas_of(plain, 12), {"samples": noise_of(SHAPE, 1)}
    latent, noise, inversion = inverted(host_guider(plain, *[mean_conditioning(0)] * 2, 1.0), sigmas, given)
    model, seen, wrapped = plain.clone(), [], plain.model_options["model_function_wrapper"]

    def watch(apply_model, args):
        seen.append((args["input"].cpu(), float(args["timestep"][0])))
        return wrapped(apply_model, args)

    model.set_model_unet_function_wrapper(watch)
    edit = host_guider(model, mean_conditioning(3), mean_conditioning(3), 1.0)
    sampler = blending(inversion, SteerDDIMSampler.execute(0.0)[0] if inner == "steer" else inner)
    sample(edit, sampler, sigmas[first:], latent, noise, hole())
    kept = outside(given["samples"], hole())
    torch.testing.assert_close(seen[0][0], inversion.latents[first], rtol=1e-5, atol=1e-5)
    between = 0
    for x, sigma in seen:
        above = max(i for i, level in enumerate(inversion.sigmas) if level >= sigma * (1 - 1e-5))
        (high, low), (top, end) = inversion.sigmas[above : above + 2], inversion.latents[above : above + 2]
        share = (high - sigma) / (high - low)
        between += 0.01 < share < 0.99
        torch.testing.assert_close(x[kept], torch.lerp(top, end, share)[kept], rtol=1e-4, atol=1e-4)
    assert between == (12 - first - 1 if inner == "dpm_2" else 0)  # dpm_2's last step, to 0, is Euler's


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_stopped_early_and_gone_on_with_is_the_whole_run(shapes, law):
    """The first part ends on the trajectory at its level; the second starts from its LATENT, with Disable Noise."""
    model = closed_form(shapes[0], law)
    sigmas, given = sigmas_of(model), {"samples": noise_of(SHAPE, 1)}
    latent, noise, inversion = inverted(host_guider(model, *[mean_conditioning(0)] * 2, 1.0), sigmas, given)
    edit = host_guider(model, mean_conditioning(3), mean_conditioning(3), 1.0)
    whole = sample(edit, blending(inversion), sigmas, latent, noise, hole())
    half = sample(edit, blending(inversion), sigmas[:11], latent, noise, hole())
    sampling = model.get_model_object("model_sampling")
    x = sampling.noise_scaling(sigmas[10], torch.zeros(SHAPE), model.model.process_latent_in(half))
    kept = outside(half, hole())
    torch.testing.assert_close(x[kept], inversion.latents[10][kept], rtol=1e-5, atol=1e-5)
    done = sample(edit, blending(inversion), sigmas[10:], {"samples": half}, Noise(torch.zeros(SHAPE)), hole())
    assert relative(done, whole) < 1e-5


def test_empty_mask_is_the_source_bitwise_without_a_call(shapes, pictures, caplog):
    model, rows = counted(shapes[0])
    sigmas = sigmas_of(model, 10)
    latent, noise, inversion = inverted(prompted(shapes, model, map(caption, SCENES), 1.0), sigmas, pictures)
    made = len(rows)
    edit = prompted(shapes, model, ["a green circle on a white background"] * 2, 5.0)
    out = sample(edit, blending(inversion), sigmas, latent, noise, torch.zeros(1, 128, 128))
    assert torch.equal(out, latent["samples"]) and len(rows) == made
    assert relative(out, pictures["samples"]) < 1e-6
    assert "SteerTrajectoryBlendSampler: the noise mask is empty" in caplog.text


def test_full_mask_with_the_same_prompt_is_the_source(shapes, pictures):
    """Refined inversion, cfg 1: within the inversion's tolerance. The picture's own prompt, whatever NOISE is given."""
    sigmas = SteerSDEditSigmas.execute(shapes[0], "normal", 20, 0.8)[0]
    guider = prompted(shapes, shapes[0], map(caption, SCENES), 1.0)
    latent, noise, inversion = inverted(guider, sigmas, pictures, refine=6)
    out = sample(guider, blending(inversion), sigmas, latent, noise, torch.ones(1, 128, 128))
    assert (out - pictures["samples"]).abs().max() / pictures["samples"].std() < 1e-3
    other = Noise(noise_of((2, 4, 16, 16), 5))
    again = sample(guider, blending(inversion), sigmas, latent, other, torch.ones(1, 128, 128))
    assert torch.equal(out, again)


def test_a_real_edit_keeps_the_background_bitwise_and_counts_its_calls(shapes, pictures):
    model, rows = counted(shapes[0])
    sigmas = SteerSDEditSigmas.execute(model, "normal", 10, 0.8)[0]
    latent, noise, inversion = inverted(prompted(shapes, model, map(caption, SCENES), 1.0), sigmas, pictures)
    made = len(rows)
    edit = prompted(shapes, model, ["a green heart on a blue background", "a red star on a black background"], 5.0)
    out = sample(edit, blending(inversion, "dpmpp_2m"), sigmas, latent, noise, hole(2))
    kept = outside(out, hole(2))
    assert torch.equal(out[kept], latent["samples"][kept])
    assert (out - latent["samples"])[~kept].abs().mean() > 0.05
    assert made == 10 and sum(rows[made:]) == 10 * 2 * 2


@pytest.mark.parametrize("inner", ["euler", "dpmpp_2m", "steer"])
def test_batch_with_its_own_masks_equals_singles_and_repeats_bitwise(shapes, pictures, inner):
    inner = SteerDDIMSampler.execute(1.0)[0] if inner == "steer" else inner
    sigmas, texts = sigmas_of(shapes[0], 5), ["a green heart on a blue background", "a red star on a black background"]
    source = prompted(shapes, shapes[0], map(caption, SCENES), 1.0)
    latent, noise, inversion = inverted(source, sigmas, pictures)

    def run(pick):
        part = replace(inversion, latents=tuple(x[pick] for x in inversion.latents))
        given, edit = {"samples": latent["samples"][pick]}, prompted(shapes, shapes[0], texts[pick], 3.0)
        start = Noise(noise.generate_noise(latent)[pick])
        return sample(edit, blending(part, inner), sigmas, given, start, hole(2)[pick])

    together = run(slice(0, 2))
    assert torch.equal(together, run(slice(0, 2)))
    assert relative(together, torch.cat([run(slice(0, 1)), run(slice(1, 2))])) < 1e-4


def test_interrupt_leaves_the_model_as_it_was(shapes, pictures):
    sigmas = sigmas_of(shapes[0], 6)
    source = prompted(shapes, shapes[0], map(caption, SCENES), 1.0)
    latent, noise, inversion = inverted(source, sigmas, pictures)
    edit = prompted(shapes, shapes[0], map(caption, SCENES), 3.0)
    before = sample(edit, comfy.samplers.sampler_object("euler"), sigmas, latent, noise, None)
    model, rows = interrupted(shapes[0], 3)
    with pytest.raises(management.InterruptProcessingException):
        sample(prompted(shapes, model, map(caption, SCENES), 1.0), blending(inversion), sigmas, latent, noise, hole())
    assert len(rows) == 3
    after = sample(edit, comfy.samplers.sampler_object("euler"), sigmas, latent, noise, None)
    assert torch.equal(before, after) and not shapes[0].object_patches


class TestRefused:
    @pytest.fixture
    def made(self, shapes, pictures):
        model, rows = counted(shapes[0])
        sigmas = sigmas_of(model, 6)
        source = prompted(shapes, model, map(caption, SCENES), 1.0)
        made = inverted(source, sigmas, pictures)
        rows.clear()
        return model, rows, sigmas, source, made

    def refused(self, made, message, sigmas=None, latent=None, noise=None, mask=None, guider=None):
        _, rows, given, source, (kept, inverted_noise, inversion) = made
        with pytest.raises(ValueError, match=f"SteerTrajectoryBlendSampler: .*{message}"):
            sample(guider or source, blending(inversion), given if sigmas is None else sigmas, latent or kept,
                   noise or inverted_noise, hole() if mask is None else mask if len(mask) else None)  # fmt: skip
        assert not rows

    def test_other_schedules(self, made, shapes):
        self.refused(made, "starts at sigma", sigmas=sigmas_of(shapes[0], 6) * 0.9)
        self.refused(made, "leave the inversion's at", sigmas=torch.cat([made[2][:3], made[2][4:]]))
        self.refused(made, "leave the inversion's at", sigmas=made[2][[0, -1]])

    def test_another_family(self, made, shapes):
        flow = closed_form(shapes[0], FLOW)
        guider = host_guider(flow, mean_conditioning(0), mean_conditioning(0), 1.0)
        self.refused(made, "variance-exploding model.*rectified-flow", guider=guider, sigmas=sigmas_of(flow, 6))

    def test_other_sizes_and_batches(self, made):
        wide = {"samples": noise_of((2, 4, 16, 24))}
        self.refused(made, r"\(2, 4, 16, 16\).*\(2, 4, 16, 24\)", latent=wide, noise=Noise(wide["samples"]))
        one = {"samples": made[4][0]["samples"][:1]}
        self.refused(made, r"\(2, 4, 16, 16\).*\(1, 4, 16, 16\)", latent=one, noise=RANDOM)

    def test_another_picture(self, made):
        other = {"samples": made[4][0]["samples"].flip(0)}
        self.refused(made, "not the picture that was inverted", latent=other, noise=made[4][1])
        nothing = torch.zeros(2, 4, 16, 16)
        self.refused(made, "not the picture that was inverted", latent={"samples": nothing}, noise=Noise(nothing))

    def test_masks(self, made):
        self.refused(made, "has no noise mask", mask=())
        self.refused(made, "from 0", mask=hole() * 255)

    def test_samplers_that_mask(self, made):
        for inner in (SteerRePaintSampler.execute(2, 1, 1.0)[0], blending(made[4][2])):
            with pytest.raises(ValueError, match="keeps the masked-out part itself"):
                SteerTrajectoryBlendSampler.execute(inner, made[4][2])


def on_family(family):
    latent, start, inverted, sigmas = oracles.inversion_of(family)
    sampler, guider = (
        SteerTrajectoryBlendSampler.execute(oracles.EULER, inverted)[0],
        oracles.guider_of(family, 3.0, oracles.TARGET),
    )
    out = sampled(start, guider, sampler, sigmas, {**latent, "noise_mask": oracles.mask_of(family)[0]})["samples"]
    assert torch.equal(oracles.outside(family, out), oracles.outside(family, latent["samples"]))
    assert relative(out, latent["samples"]) > 1e-3
    nothing = {**latent, "noise_mask": 0 * oracles.mask_of(family)[0]}
    assert torch.equal(sampled(start, guider, sampler, sigmas, nothing)["samples"], latent["samples"])


def check_following_sampler(world, given, run, output):
    def inverted(source):
        model = run["guider"].model_patcher.model
        return model.process_latent_out(given["inversion"].latents[-1]).expand_as(source)

    checks.run_and_check(run, sampler=output[0], keeps=inverted)


ORACLE = {
    "SteerTrajectoryBlendSampler": (
        "outside the mask the source, inside edited; an empty mask is the source bit for bit",
        on_family,
    ),
}
CHECK = {
    "SteerTrajectoryBlendSampler": (check_following_sampler, checks.OF_GUIDER),
}
