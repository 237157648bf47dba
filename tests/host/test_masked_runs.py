"""What runs with a mask take for the source and what of it they see: RePaint, Blended, Trajectory Blend."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, noise_of, run, sampled, sigmas_of
from steer.nodes.attention_maps import SteerCaptureAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.companions import guided
from steer.tests.host_models import EPS, FLOW, V, closed_form, hole, mean_conditioning, relative, two_modes

SHAPE = (1, 4, 16, 16)
LAWS = [EPS, V, FLOW]
HOST = comfy.samplers.sampler_object


def blended(inner):
    return SteerBlendedSampler.execute(HOST(inner) if isinstance(inner, str) else inner, 0)[0]


SAMPLERS = {
    "RePaint": SteerRePaintSampler.execute(2, 3, 1.0)[0],
    "Langevin": SteerLangevinSampler.execute(2, 0.5)[0],
    "Blended, euler": blended("euler"),
    "Blended, dpmpp_2m_sde": blended("dpmpp_2m_sde"),
    "Blended, DDIM eta 1": blended(SteerDDIMSampler.execute(1.0)[0]),
}
NAMES = ["RePaint", "Langevin", "Blended, euler"]


def plain(model, mean=3.0):
    return host_guider(model, mean_conditioning(mean), mean_conditioning(0), 1.0)


def exactly(model, latent):
    """The latent after its way into the host's scale and out of it."""
    there = latent.to(model.load_device)  # a GPU divides otherwise
    return model.model.process_latent_out(model.model.process_latent_in(there)).cpu()


def looking(model):
    """A clone of a closed-form model, and the latents that it is called with."""
    model, seen, wrapper = model.clone(), [], model.model_options["model_function_wrapper"]
    model.set_model_unet_function_wrapper(lambda apply, args: (seen.append(args["input"]), wrapper(apply, args))[1])
    return model, seen


class TestWhatLiesUnderTheMask:
    """At the model's highest level nothing of it counts, below that all of it."""

    @pytest.mark.parametrize("law", LAWS)
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_a_mixture_has_its_share_whatever_the_hole_holds(self, shapes, law, name):
        """Two modes that differ in the hole alone, so that the exact share of each is a half."""
        count, mask = 256, torch.zeros(1, 1, 4, 4)
        mask[..., 2:] = 1.0
        mean = mask * noise_of((4, 4, 4), 1)
        mean *= 12.0 / mean.norm()
        model = two_modes(shapes[0], law, mean)
        guider, sigmas, noise = plain(model), sigmas_of(model, 8), noise_of((count, 4, 4, 4))
        results, shares = [], []
        for held in (0.0 * mean, mean, -mean):
            latent = (held + (1.0 - mask) * noise_of((1, 4, 4, 4), 2)).repeat(count, 1, 1, 1)
            out = run(guider, SAMPLERS[name], sigmas, noise, model.model.process_latent_out(latent), mask)
            results.append(out)
            shares.append(float(((out * mean).flatten(1).sum(1) > 0).float().mean()))
        assert max(abs(share - 0.5) for share in shares) < 3.0 * 0.5 * count**-0.5, shares
        assert all(torch.equal(out, results[0]) for out in results[1:])

    @pytest.mark.parametrize("law", LAWS)
    @pytest.mark.parametrize("name", NAMES)
    def test_the_start(self, shapes, law, name):
        """A soft edge keeps its share of the source; below the top level all is there."""
        model, seen = looking(closed_form(shapes[0], law))
        sampling, sigmas = model.get_model_object("model_sampling"), sigmas_of(model, 6)
        latent, noise, mask = noise_of(SHAPE, 1), noise_of(SHAPE), torch.ones(1, 1, 16, 16)
        mask[..., :8] = torch.linspace(0.125, 1.0, 8)
        source = model.model.process_latent_in(latent)
        for top, start in ((True, (1.0 - mask) * source), (False, source)):
            seen.clear()
            run(plain(model), SAMPLERS[name], sigmas if top else sigmas[2:], noise, latent, mask)
            expected = sampling.noise_scaling(sigmas[0 if top else 2], noise.clone(), start, top)
            assert relative(seen[0][:1].cpu(), expected) < 1e-6

    @pytest.mark.parametrize("law", [EPS, FLOW])
    @pytest.mark.parametrize("name", NAMES)
    def test_the_noise_of_an_inversion_leads_to_the_inverted_latent(self, shapes, law, name):
        model, seen = looking(closed_form(shapes[0], law, variance=1.0))
        sigmas = sigmas_of(model, 6)
        latent, noise, inversion = inverted(model, sigmas)
        seen.clear()
        sampled(noise, plain(model), SAMPLERS[name], sigmas, {**latent, "noise_mask": hole()})
        inside = hole().expand(SHAPE) > 0
        assert relative(seen[0][:1].cpu()[inside], inversion.latents[0][inside]) < 1e-5

    @pytest.mark.parametrize("name", NAMES)
    def test_all_masked_and_without_noise_starts_at_the_latent(self, shapes, name):
        model, seen = looking(closed_form(shapes[0], EPS))
        latent, sigmas = 14.6 * noise_of(SHAPE, 1), sigmas_of(model, 6)
        run(plain(model), SAMPLERS[name], sigmas, torch.zeros(SHAPE), latent, torch.ones(1, 1, 16, 16))
        assert torch.equal(seen[0][:1].cpu(), model.model.process_latent_in(latent))


def both_outputs(noise, guider, sampler, sigmas, latent):
    """The output and the denoised_output of SamplerCustomAdvanced."""
    of = getattr(SamplerCustomAdvanced, "execute", None) or SamplerCustomAdvanced().sample
    output = of(noise, guider, sampler, sigmas, latent)
    return getattr(output, "args", output)[:2]


@st.composite
def splits(draw):
    """(noise mask, latent's shape, steps, where they are split): parts to keep and to paint in each picture."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(2, 12))
    mask = torch.zeros(draw(st.sampled_from([1, batch])), 1, height, width)
    for each in mask:
        across = draw(st.booleans()) or height == 1
        cut = draw(st.integers(1, (width if across else height) - 1))
        each[(..., slice(cut)) if across else (..., slice(cut), slice(None))] = draw(st.sampled_from([1.0, 0.5]))
    steps = draw(st.integers(2, 6))
    return mask, (batch, 4, height, width), steps, draw(st.integers(1, steps - 1))


class TestSplitSigmas:
    """The second run gets a latent in the middle of a run, from which the source cannot be told."""

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(splits(), st.sampled_from(LAWS), st.sampled_from(NAMES), st.sampled_from(NAMES))
    def test_is_refused_and_what_the_message_says_keeps_the_source(self, shapes, split, law, first, second):
        mask, shape, steps, at = split
        model, rows = counted(closed_form(shapes[0], law))
        guider, sigmas, latent, noise = plain(model), sigmas_of(model, steps), noise_of(shape, 1), noise_of(shape)
        source, nothing = {"samples": latent, "noise_mask": mask}, Noise(torch.zeros(shape))
        half, denoised = both_outputs(Noise(noise), guider, SAMPLERS[first], sigmas[: at + 1], source)
        rows.clear()
        with pytest.raises(ValueError, match=r"Steer\w+: .*Disable Noise.*in one run.*denoised_output.*RandomNoise"):
            sampled(nothing, guider, SAMPLERS[second], sigmas[at:], half)
        assert not rows
        kept = (mask == 0.0).expand(shape)
        for out in (
            sampled(Noise(noise), guider, SAMPLERS[second], sigmas, source),
            sampled(Noise(noise_of(shape, 5)), guider, SAMPLERS[second], sigmas[at:], denoised),
        ):
            torch.testing.assert_close(out["samples"][kept], latent[kept], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", NAMES)
    def test_one_sample_without_noise_is_enough(self, shapes, name):
        model = closed_form(shapes[0], EPS)
        noise = noise_of((2, 4, 16, 16))
        noise[1] = 0.0
        with pytest.raises(ValueError, match="Disable Noise"):
            run(plain(model), SAMPLERS[name], sigmas_of(model)[10:], noise, noise_of((2, 4, 16, 16), 1), hole())

    @pytest.mark.parametrize("law", [EPS, FLOW])
    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_to_keep_goes_on(self, shapes, law, name):
        """All masked, so that no source is needed: as DDIM goes on from the latent."""
        model, everything = closed_form(shapes[0], law), torch.ones(1, 1, 16, 16)
        plainly = {
            "RePaint": SteerRePaintSampler.execute(1, 1, 0.0)[0],
            "Langevin": SteerLangevinSampler.execute(1, 0.5)[0],
        }
        sampler = plainly.get(name, SAMPLERS[name])
        half, sigmas, nothing = noise_of(SHAPE, 1), sigmas_of(model)[10:], torch.zeros(SHAPE)
        out = run(plain(model), sampler, sigmas, nothing, half, everything)
        expected = run(plain(model), SteerDDIMSampler.execute(0.0)[0], sigmas, nothing, half)
        assert relative(out, expected) < 1e-5

    def test_trajectory_blend_goes_on(self, shapes):
        """It has the source in its inversion."""
        model = closed_form(shapes[0], EPS)
        sigmas, mask = sigmas_of(model, 6), hole()
        kept, noise, inversion = inverted(model, sigmas)
        given, sampler = {**kept, "noise_mask": mask}, SteerTrajectoryBlendSampler.execute(HOST("euler"), inversion)[0]
        whole = sampled(noise, plain(model), sampler, sigmas, given)["samples"]
        half = sampled(noise, plain(model), sampler, sigmas[:4], given)
        out = sampled(Noise(torch.zeros(SHAPE)), plain(model), sampler, sigmas[3:], half)["samples"]
        assert relative(out, whole) < 1e-5


def inverted(model, sigmas):
    """(LATENT, NOISE, inversion) of a picture."""
    picture = {"samples": noise_of(SHAPE, 1)}
    return SteerDDIMInversion.execute(plain(model, 0.0), sigmas, picture, 0, 1e-4, False).args


class TestTheSigmasOfASampler:
    """Some samplers of the host write into them."""

    @pytest.mark.parametrize("law", [EPS, FLOW])
    @pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
    @pytest.mark.parametrize("kind", ["Blended", "Trajectory Blend"])
    def test_the_source_is_kept_to_the_last_bit(self, shapes, law, name, kind):
        model, mask = closed_form(shapes[0], law), hole()
        sigmas, kept = sigmas_of(model, 8), (mask == 0.0).expand(SHAPE)
        latent, noise, inversion = inverted(model, sigmas)
        sampler = blended(name)
        if kind == "Trajectory Blend":
            sampler = SteerTrajectoryBlendSampler.execute(HOST(name), inversion)[0]
        for _ in range(2):  # the second run gets the sigmas that the first was given
            out = sampled(noise, plain(model), sampler, sigmas, {**latent, "noise_mask": mask})["samples"]
            # what was inverted comes back as it is, the rest by way of the host's scale
            expected = exactly(model, latent["samples"]) if kind == "Blended" else latent["samples"]
            assert torch.equal(out[kept], expected[kept])

    @pytest.mark.parametrize("law", [EPS, FLOW])
    def test_a_run_that_stops_early_keeps_the_source_at_its_level(self, shapes, law):
        model, mask = closed_form(shapes[0], law), torch.zeros(1, 1, 64, 64)
        mask[..., :8] = 1.0
        sigmas, latent, noise = sigmas_of(model, 8)[:6], noise_of((1, 4, 64, 64), 1), noise_of((1, 4, 64, 64))
        out = run(plain(model), blended("uni_pc"), sigmas, noise, latent, mask)
        source, level = model.model.process_latent_in(latent), sigmas[-1]
        scaled = model.get_model_object("model_sampling").noise_scaling(
            level, torch.zeros_like(out), model.model.process_latent_in(out)
        )
        alpha = 1.0 - level if law == FLOW else 1.0
        assert abs((scaled - alpha * source)[..., 8:].std() / level - 1.0) < 0.03

    @pytest.mark.parametrize(
        "kind", ["Blended", "Trajectory Blend", "CFG Guider", "Gradient Guider", "Prompt-to-Prompt", "Capture", "Paint"]
    )
    def test_the_wire_keeps_them(self, shapes, kind):
        """Whatever is round the sampler."""
        model, clip, _ = shapes
        positive, negative, mask = encode(clip, "a red circle"), encode(clip, ""), None
        sampler, guider = comfy.samplers.KSAMPLER(writing), host_guider(model, positive, negative, 3.0)
        sigmas, latent, noise = sigmas_of(model, 2), {"samples": noise_of(SHAPE, 1)}, Noise(noise_of(SHAPE))
        before, sample = sigmas.clone(), sampled
        if kind == "Blended":
            sampler, mask = blended(sampler), hole()
        elif kind == "Trajectory Blend":
            latent, noise, inversion = SteerDDIMInversion.execute(guider, sigmas, latent, 0, 1e-4, False).args
            sampler, mask = SteerTrajectoryBlendSampler.execute(sampler, inversion)[0], hole()
        elif kind == "CFG Guider":
            guider = SteerCFGGuider.execute(model, positive, negative, 3.0, 0.0, 1.0, 1.0)[0]
        elif kind == "Gradient Guider":
            guider = guided(guider, 1.0)
        elif kind == "Prompt-to-Prompt":
            source, target, edit = SteerPromptEdit.execute(clip, "a red circle", "a red star", "auto", "").args
            guider = SteerPromptToPromptGuider.execute(model, source, target, negative, 3.0, edit, 0.8, 0.4)[0]
        elif kind == "Capture":
            sample = SteerCaptureAttention.execute
        elif kind == "Paint":
            regions = SteerRegion.execute(torch.ones(1, 128, 128), "circle", 1.0)[0]
            guider = host_guider(
                *SteerPaintWithWords.execute(model, clip, "a red circle", regions, 0.4).args, negative, 3.0
            )
        if mask is not None:
            latent = {**latent, "noise_mask": mask}
        sample(noise, guider, sampler, sigmas, latent)
        assert torch.equal(sigmas, before)


def writing(model, x, sigmas, extra_args, callback, disable):
    """A sampler of one call, which writes into the sigmas that it is given."""
    denoised = model(x, sigmas[0].expand(x.shape[0]), **extra_args)
    callback({"x": x, "i": 0, "denoised": denoised})
    sigmas[-1] = 0.001
    return denoised
