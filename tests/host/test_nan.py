"""A prediction that holds NaN ends the run at once, in the name of the node that asked for it."""

import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import Noise, encode, host_guider, noise_of, run, sampled, sigmas_of
from steer.nodes.attention_maps import SteerCaptureAttention, SteerInjectAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.null_text import SteerNullText
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.companions import EULER, GREEN, RED, SHAPE, captured, guided, left_half
from steer.tests.host_models import EPS, FLOW, closed_form, hole, mean_conditioning, relative


def answering(model, call, value):
    """A clone of the model, one number of whose answer in this call, from 1, is the value; and its calls' levels."""
    levels, inner = [], model.model_options.get("model_function_wrapper")

    def wrapper(apply_model, args):
        levels.append(float(args["timestep"][0]))
        out = inner(apply_model, args) if inner else apply_model(args["input"], args["timestep"], **args["c"])
        if len(levels) == call:
            out = out.clone()
            out[0, 0, 0, 0] = value  # outside of every mask
        return out

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model, levels


class World:
    """What the nodes are run on; `model` is the one that is to answer with NaN."""

    def __init__(self, shapes):
        self.plain, self.clip = shapes[:2]
        self.sigmas, self.noise, self.known = sigmas_of(shapes[0], 4), noise_of(SHAPE), noise_of(SHAPE, 5)
        self.latent, self.mask, self.empty = {"samples": self.known}, hole(height=8, width=8), encode(self.clip, "")
        self.source, self.target, self.edit = SteerPromptEdit.execute(self.clip, RED, GREEN, "auto", "").args

    def guider(self, model):
        return host_guider(model, self.source, self.empty, 3.0)

    def sampled(self, guider, sampler=EULER, *masked):
        return sampled(Noise(self.noise), guider, sampler, self.sigmas, {**self.latent, **dict(masked)})

    def masked(self, model, sampler):
        return self.sampled(self.guider(model), sampler, ("noise_mask", self.mask[0]))

    def inversion(self, model, refine):
        return SteerDDIMInversion.execute(host_guider(model, self.source, self.empty, 1.0), self.sigmas, self.latent,
                                          refine, 1e-4, True)  # fmt: skip

    def on_track(self, model):
        latent, noise, inversion = self.inversion(self.plain, 0).args
        guider = SteerPromptToPromptGuider.execute(model, self.source, self.target, self.empty, 3.0, self.edit, 0.8,
                                                   0.4, None, inversion)[0]  # fmt: skip
        return run(guider, EULER, self.sigmas, noise.generate_noise(latent), latent["samples"])

    def steer(self, model, **given):
        given = {"cfg": 3.0, "negative_scale": 1.0, **given}
        cfg, negative_scale, empty = given["cfg"], given["negative_scale"], given.get("empty")
        return SteerCFGGuider.execute(model, self.source, self.target, cfg, 0.0, 1.0, negative_scale, empty)[0]


# for each node what runs it; a guider of the host names none, so the sampler's or the patch's name is the one
RUNS = {
    "SteerDDIMSampler": lambda w, m: w.sampled(w.guider(m), SteerDDIMSampler.execute(1.0)[0]),
    "SteerRePaintSampler": lambda w, m: w.masked(m, SteerRePaintSampler.execute(2, 1, 1.0)[0]),
    "SteerLangevinSampler": lambda w, m: w.masked(m, SteerLangevinSampler.execute(2, 0.5)[0]),
    "SteerBlendedSampler": lambda w, m: w.masked(m, SteerBlendedSampler.execute(EULER, 0)[0]),
    "SteerTrajectoryBlendSampler": lambda w, m: w.masked(
        m, SteerTrajectoryBlendSampler.execute(EULER, w.inversion(w.plain, 0)[2])[0]
    ),
    "SteerDDIMInversion": lambda w, m: w.inversion(m, 0),
    "SteerDDIMInversion, refined": lambda w, m: w.inversion(m, 3),
    "SteerCFGGuider": lambda w, m: w.sampled(w.steer(m)),
    "SteerCFGGuider, with the empty": lambda w, m: w.sampled(w.steer(m, empty=w.empty)),
    "SteerCFGGuider, in a Steer sampler": lambda w, m: w.sampled(w.steer(m), SteerDDIMSampler.execute(0.0)[0]),
    "SteerGradientGuider": lambda w, m: w.sampled(guided(w.guider(m), 0.5)),
    "SteerPromptToPromptGuider": lambda w, m: w.sampled(
        SteerPromptToPromptGuider.execute(m, w.source, w.target, w.empty, 3.0, w.edit, 0.8, 0.4)[0]
    ),
    "SteerPromptToPromptGuider, on its track": lambda w, m: w.on_track(m),
    "SteerNullText": lambda w, m: SteerNullText.execute(
        m, w.source, w.empty, 3.0, w.inversion(w.plain, 0)[2], 1, 0.01, 0.0
    ),
    "SteerDiffEditMask": lambda w, m: SteerDiffEditMask.execute(m, w.source, w.target, w.latent, 0.5, 3, 0.5, 0),
    "SteerCaptureAttention": lambda w, m: SteerCaptureAttention.execute(
        Noise(w.noise), w.guider(m), EULER, w.sigmas, w.latent, 0.8, 0.4
    ),
    "SteerInjectAttention": lambda w, m: w.sampled(
        host_guider(
            SteerInjectAttention.execute(
                m, captured(w.plain, w.source, w.empty, w.noise, w.sigmas, (0.8, 0.4))[1], w.edit, 0.8, 0.4
            )[0],
            w.target, w.empty, 3.0,
        )
    ),
    "SteerPaintWithWords": lambda w, m: w.sampled(
        host_guider(
            *SteerPaintWithWords.execute(
                m, w.clip, RED, SteerRegion.execute(left_half(), "circle", 1.0)[0], 0.4
            ),
            w.empty, 3.0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", RUNS)
def test_every_node_says_where_the_model_failed(shapes, name, value):
    """At once, before the next prediction, with its own name once."""
    node, call = name.split(",")[0], 1 if name == "SteerDiffEditMask" else 3
    model, levels = answering(shapes[0], call, value)
    with pytest.raises(ValueError) as found:
        RUNS[name](World(shapes), model)
    text = str(found.value)
    assert text.startswith(f"{node}: the model's answer at sigma {levels[call - 1]:.4g} holds NaN")
    # on its track Prompt-to-Prompt makes a prediction of two calls
    assert len(levels) == call or ("track" in name and levels[call:] == levels[call - 1 : call])
    assert "--fp32-unet" in text and text.count(node) == 1


def test_the_search_for_embeddings_says_where_it_lost_its_way(shapes):
    """There too large a learning rate may be the cause as well."""
    model, levels = answering(shapes[0], 2, float("nan"))
    with pytest.raises(
        ValueError, match="SteerNullText: the loss is .nan. at step 0 .sigma 14.61., inner step 0; lower"
    ):
        RUNS["SteerNullText"](World(shapes), model)
    assert len(levels) == 2


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_a_sampler_that_makes_nan_of_good_answers_is_told_from_the_model(shapes, law):
    class Broken(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar):
            model_wrap(noise, sigmas[:1], **extra_args)
            return model_wrap(noise / 0.0 * 0.0, sigmas[1:2], **extra_args)

    model = closed_form(shapes[0], law)
    guider = SteerCFGGuider.execute(model, mean_conditioning(1), mean_conditioning(0), 3.0, 0.0, 1.0, 1.0)[0]
    sigmas = sigmas_of(model, 4)
    with pytest.raises(ValueError, match=f"SteerCFGGuider: the sampler came to sigma {sigmas[1]:.4g} with a latent"):
        run(guider, Broken(), sigmas, noise_of(SHAPE))


def test_the_models_runs_afterwards_are_as_before(shapes):
    world = World(shapes)
    before = world.sampled(world.guider(shapes[0]))["samples"]
    model, _ = answering(shapes[0], 2, float("nan"))
    with pytest.raises(ValueError, match="SteerGradientGuider: the model's answer"):
        world.sampled(guided(world.guider(model), 0.5))
    assert relative(world.sampled(world.guider(shapes[0]))["samples"], before) == 0.0


def test_a_large_answer_is_an_answer(shapes):
    model = closed_form(shapes[0], EPS)
    guider = SteerCFGGuider.execute(model, mean_conditioning(1e6), mean_conditioning(0), 3.0, 0.0, 1.0, 1.0)[0]
    assert torch.isfinite(run(guider, EULER, sigmas_of(model, 4), noise_of(SHAPE))).all()
