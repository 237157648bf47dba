"""The host's own model patches under Steer's nodes: on the network, on guidance, and those that leave calls out."""

from types import SimpleNamespace

import pytest
import torch
from comfy_extras.nodes_apg import APG
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, of_host, run, sigmas_of
from steer.nodes.attention_maps import SteerInjectAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.null_text import SteerNullText
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.cases import some
from steer.tests.companions import (
    EULER,
    GREEN,
    RED,
    Square,
    captured,
    check_slope,
    companion,
    guided,
    left_half,
    patched,
)
from steer.tests.host_models import hole, relative
from steer.tests.oracles import check_edit_guider

NETWORK = "FreeU", "Deep Shrink", "HyperTile"
OVERRIDE = "CFG Override"
GUIDANCE = "RescaleCFG", "APG", "TCFG", "CFG-Zero*", "CFGNorm", "FreSca", "Mahiro", "Epsilon Scaling", "NAG", OVERRIDE
ALL = NETWORK + GUIDANCE
CACHES = "EasyCache", "LazyCache"
ENDS = 0.8, 0.4
DIRECT_EDIT = SteerDirectEditSampler.execute(0.0, 0.0, 1)[0]


class Runs:
    """A patched model, and what is run on it."""

    def __init__(self, shapes, name, steps=3):
        self.model, self.clip, self.sigmas = patched(shapes[0], name), shapes[1], sigmas_of(shapes[0], steps)
        side = 32 if name == "HyperTile" else 8  # the finest attention, which it tiles, is not to be a shared one
        self.noise, self.latent = noise_of((1, 4, side, side)), {"samples": noise_of((1, 4, side, side), 5)}
        self.source, self.target, self.edit = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
        self.negative = encode(shapes[1], "")

    def unpatched(self, shapes):
        self.model = shapes[0]
        return self

    def guider(self, positive, cfg=3.0):
        return host_guider(self.model, positive, self.negative, cfg)

    def alone(self, positive, model=None):
        return self.sampled(host_guider(model or self.model, positive, self.negative, 3.0))

    def sampled(self, guider, sampler=EULER, *masked):
        return run(guider, sampler, self.sigmas, self.noise, *masked)

    def prompt_to_prompt(self, *ends, inversion=None):
        return SteerPromptToPromptGuider.execute(
            self.model, self.source, self.target, self.negative, 3.0, self.edit, *ends, None, inversion
        )[0]

    def edited(self, source_cfg=1.0, target_cfg=3.0):
        prompts = self.source, self.target
        return SteerEditGuider.execute(self.model, *prompts, source_cfg, target_cfg, self.negative)[0]

    def captured(self):
        return captured(self.model, self.source, self.negative, self.noise, self.sigmas, ENDS)

    def inverted(self, refine, check=False):
        guider = self.guider(self.source, 1.0)
        return SteerDDIMInversion.execute(guider, self.sigmas, self.latent, refine, 1e-4, check)

    def contrast(self):
        return SteerDiffEditMask.execute(self.model, self.source, self.target, self.latent, 0.5, 3, 0.5, 0).args[1]

    def null_text(self, inversion):
        return SteerNullText.execute(self.model, self.source, self.negative, 3.0, inversion, 2, 0.01, 0.0)[0]


@pytest.mark.parametrize("name", some((*ALL, *CACHES), "FreeU", "RescaleCFG", "FreSca", "NAG", "EasyCache"))
def test_guider_and_samplers(shapes, name):
    """The host's guider and euler with the same patch, which acts; where all is painted, RePaint and Blended too."""
    with_it = Runs(shapes, name, 20 if name in CACHES else 3)
    expected, everything = with_it.alone(with_it.source), torch.ones_like(with_it.noise[:, :1])
    assert relative(expected, with_it.alone(with_it.source, shapes[0])) > 1e-3
    guider = SteerCFGGuider.execute(with_it.model, with_it.source, with_it.negative, 3.0, 0.0, 1.0, 1.0)[0]
    masked = with_it.latent["samples"], everything
    for sampler, given in (
        (SteerDDIMSampler.execute(0.0), ()),
        (SteerRePaintSampler.execute(1, 1, 0.0), masked),
        (SteerBlendedSampler.execute(EULER, 0), masked),
    ):
        assert relative(with_it.sampled(guider, sampler[0], *given), expected) < 1e-4


@pytest.mark.parametrize("name", some(ALL, "Deep Shrink", "APG", "CFG-Zero*"))
def test_gradient_guider(shapes, name):
    """Made anew each time, as APG's momentum outlives a run."""
    source = Runs(shapes, name).source
    check_slope(shapes, lambda: Runs(shapes, name).guider(source))


# of Mahiro one number is the mean over a whole batch, by which source and target change each other
@pytest.mark.parametrize("name", some([name for name in ALL if name != "Mahiro"], "HyperTile", "TCFG", "CFGNorm"))
def test_prompt_to_prompt_capture_and_inject(shapes, name):
    """With the gates at 0 two generations, else the source stays; the target is that of a recorded source."""
    with_it = Runs(shapes, name)
    source, target = with_it.alone(with_it.source), with_it.alone(with_it.target)
    first, second = with_it.sampled(with_it.prompt_to_prompt(0.0, 0.0)).chunk(2)
    assert relative(first, source) < 3e-5 and relative(second, target) < 3e-5
    first, second = with_it.sampled(with_it.prompt_to_prompt(*ENDS)).chunk(2)
    assert relative(first, source) < 3e-5 and relative(second, target) > 1e-3
    kept, attention = with_it.captured()
    assert relative(kept["samples"], first) < 3e-5
    injected = SteerInjectAttention.execute(with_it.model, attention, with_it.edit, *ENDS)[0]
    assert relative(with_it.alone(with_it.target, injected), second) < 1e-4


# APG's momentum would go from the source's call to the target's, and is refused; CFG Override sets the target's cfg
# alone (`test_cfg_override_sets_the_targets_scale`)
ALIKE = [name for name in ALL if name not in ("APG", OVERRIDE)]


@pytest.mark.parametrize("name", some(ALIKE, "FreeU", "CFG-Zero*", "NAG"))
def test_direct_edit(shapes, name):
    """Each prompt's estimate is that of the host's guider with the same patch."""
    check_direct_edit(lambda: Runs(shapes, name))


def test_direct_edit_with_apg_without_momentum(shapes):
    def make():
        with_it = Runs(shapes, "APG")
        with_it.model = of_host(APG, shapes[0], 1.0, 5.0, 0.0)
        return with_it

    check_direct_edit(make)


@pytest.mark.parametrize("prompt_to_prompt", [False, True])
def test_direct_edit_refuses_momentum(shapes, prompt_to_prompt):
    """Whatever the scales, under both guiders, before the first model call."""
    with_it = Runs(shapes, "APG")
    with_it.model, rows = counted(with_it.model)
    for scales in ((1.0, 1.0), (1.0, 5.0)):
        pair = with_it.prompt_to_prompt(*ENDS) if prompt_to_prompt else with_it.edited(*scales)
        with pytest.raises(ValueError, match="SteerDirectEditSampler: .*momentum is -0.5.*set its momentum to 0"):
            with_it.sampled(pair, DIRECT_EDIT, with_it.latent["samples"])
    assert not rows


def check_direct_edit(make):
    def conds():
        with_it = make()
        return with_it.model, with_it.source, with_it.target, with_it.negative

    check_edit_guider(conds, make().latent["samples"], 2.0, 2.0, 3.0)


@pytest.mark.parametrize("name", some(ALL, "HyperTile", "Mahiro", "NAG"))
def test_paint_with_words(shapes, name):
    """Weight 0 changes nothing, and more does."""
    with_it, regions = Runs(shapes, name), SteerRegion.execute(left_half(), "circle", 1.0)[0]
    plain = with_it.alone(with_it.source)
    for weight, same in ((0.0, True), (0.4, False)):
        model, positive = SteerPaintWithWords.execute(with_it.model, with_it.clip, RED, regions, weight).args
        assert (relative(with_it.alone(positive, model), plain) < 1e-5) == same


@pytest.mark.parametrize("name", some([name for name in ALL if name != "APG"], "FreeU", "CFGNorm", "Epsilon Scaling"))
def test_inversion_and_trajectory_blend(shapes, name):
    """Back to the picture, where sampling goes on with the same patch."""
    with_it = Runs(shapes, name)
    with_it.sigmas, mask = sigmas_of(shapes[0], 20)[16:], torch.zeros_like(with_it.noise[:, :1])
    mask[..., 2:6, 3:7] = 1.0
    latent, noise, inversion = with_it.inverted(5).args
    with_it.noise, known = noise.generate_noise(latent), latent["samples"]
    for sampler, *masked in ((EULER,), (SteerTrajectoryBlendSampler.execute(EULER, inversion)[0], mask)):
        assert relative(with_it.sampled(with_it.guider(with_it.source, 1.0), sampler, known, *masked), known) < 2e-3


def test_inversion_says_that_it_does_not_hold_with_momentum(shapes):
    """Without momentum it does."""
    for momentum, holds in ((-0.5, False), (0.0, True)):
        with_it = Runs(shapes, "APG").unpatched(shapes)
        with_it.model = of_host(APG, shapes[0], 1.0, 5.0, momentum)
        with_it.sigmas = sigmas_of(shapes[0], 20)[16:]
        text = with_it.inverted(5, check=True).ui["text"][0]
        assert ("does not hold" in text) == ("remembers earlier calls" in text) == (not holds)


@pytest.mark.parametrize("name", some(ALL, "Deep Shrink", "RescaleCFG", "Mahiro"))
def test_diffedit(shapes, name):
    """The contrast of two prompts has no guidance in it, and all of the network."""
    heats = Runs(shapes, name).contrast(), Runs(shapes, name).unpatched(shapes).contrast()
    assert torch.allclose(*heats, atol=1e-3) == (name in GUIDANCE)


@pytest.mark.parametrize("name", some(NETWORK, "FreeU"))
def test_null_text(shapes, name):
    """Guidance comes back to the picture better with it than without."""
    with_it = Runs(shapes, name)
    with_it.sigmas = sigmas_of(shapes[0], 20)[17:]
    latent, noise, inversion = with_it.inverted(5).args
    found = SteerNullText.execute(with_it.model, with_it.source, with_it.negative, 5.0, inversion, 3, 0.05, 0.0)[0]
    start, known = noise.generate_noise(latent), latent["samples"]
    errors = []
    for negative in (found, with_it.negative):
        guider = host_guider(with_it.model, with_it.source, negative, 5.0)
        errors.append(float((run(guider, EULER, with_it.sigmas, start, known) - known).square().mean()))
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    "name", some((*GUIDANCE, "Skip Layer", "Skip Layer Simple"), "TCFG", OVERRIDE, "Skip Layer Simple")
)
def test_null_text_says_that_guidance_is_changed(shapes, name):
    with_it = Runs(shapes, name)
    inversion = with_it.inverted(0)[2]
    with_it.model, rows = counted(with_it.model)
    with pytest.raises(ValueError, match="SteerNullText: the model has a patch that changes guidance.*remove it"):
        with_it.null_text(inversion)
    assert not rows


@pytest.mark.parametrize("name", some([name for name in GUIDANCE if name != "Mahiro"], "RescaleCFG", "NAG"))
def test_direct_inversion(shapes, name):
    """The source is as recorded, and where nothing is shared the target is that of a plain run with the patch."""
    check_direct_inversion(Runs(shapes, name), lambda: Runs(shapes, name).model)


@pytest.mark.parametrize("name", ["PAG", "SAG"])
def test_direct_inversion_with_guidance_that_calls_the_model_again(shapes, name):
    """Its call is of the prompt that is guided, and not of the source's."""
    with_it = Runs(shapes, "FreeU").unpatched(shapes)
    check_direct_inversion(with_it, lambda: companion(shapes, name).model)


def check_direct_inversion(with_it, make):
    with_it.model = make()
    latent, noise, inversion = with_it.inverted(0).args
    start, known = noise.generate_noise(latent), latent["samples"]
    with_it.model = make()  # anew, as APG's momentum outlives a run
    guider = with_it.prompt_to_prompt(0.0, 0.0, inversion=inversion)
    source, target = run(guider, EULER, with_it.sigmas, start, known).chunk(2)
    assert relative(source, known) < 1e-5
    with_it.model = make()
    alone = run(with_it.guider(with_it.target), EULER, with_it.sigmas, start, known)
    assert relative(target, alone) < 3e-5


@pytest.mark.parametrize("name", some(["token merging", "HyperTile, deep"], "HyperTile, deep"))
def test_patches_that_move_the_places_of_shared_attention(shapes, name):
    """Self-attention cannot be shared; words can."""
    with_it = Runs(shapes, name)
    for guider in (with_it.prompt_to_prompt(*ENDS), host_guider(*with_recorded(shapes, with_it), 3.0)):
        with pytest.raises(ValueError, match="a patch on attn1 changes.*remove the patch"):
            with_it.sampled(guider)
    assert torch.isfinite(with_it.sampled(with_it.prompt_to_prompt(0.8, 0.0))).all()


def with_recorded(shapes, with_it):
    """(the patched model with attention that was captured without the patch, positive, negative)"""
    plain = Runs(shapes, "FreeU").unpatched(shapes)
    injected = SteerInjectAttention.execute(with_it.model, plain.captured()[1], with_it.edit, *ENDS)[0]
    return injected, with_it.target, with_it.negative


@pytest.mark.parametrize("key", ["torch_compile_kwargs", "context_handler"])
def test_attention_that_is_not_seen_as_it_is_called(shapes, key):
    """What the host's TorchCompileModel and Context Windows leave on a model. Before the first call."""
    with_it = Runs(shapes, "FreeU").unpatched(shapes)
    attention, regions = with_it.captured()[1], SteerRegion.execute(left_half(), "circle", 1.0)[0]
    with_it.model, rows = counted(with_it.model)
    with_it.model.model_options[key] = SimpleNamespace(should_use_context=lambda *args: False)
    injected = SteerInjectAttention.execute(with_it.model, attention, with_it.edit, *ENDS)[0]
    painted = SteerPaintWithWords.execute(with_it.model, with_it.clip, RED, regions, 0.4).args
    for node, call in {
        "SteerPromptToPromptGuider": lambda: with_it.sampled(with_it.prompt_to_prompt(*ENDS)),
        "SteerCaptureAttention": with_it.captured,
        "SteerInjectAttention": lambda: with_it.alone(with_it.target, injected),
        "SteerPaintWithWords": lambda: with_it.alone(painted[1], painted[0]),
    }.items():
        with pytest.raises(ValueError, match=f"{node}: the model (is compiled|has context windows).*remove that"):
            call()
    assert not rows


@pytest.mark.parametrize("name", CACHES)
def test_what_needs_every_call_refuses_a_cache(shapes, name):
    """Such a patch answers from earlier calls of a run that only goes down. Before the first call, naming it."""
    with_it = Runs(shapes, name, 20)
    inversion = Runs(shapes, name, 20).unpatched(shapes).inverted(0)[2]
    with_it.model, rows = counted(with_it.model)
    masked, repaint = (with_it.latent["samples"], hole(height=8, width=8)), SteerRePaintSampler.execute(2, 5, 1.0)[0]
    langevin = SteerLangevinSampler.execute(2, 0.5)[0]
    for node, call in {
        "SteerDDIMInversion": lambda: with_it.inverted(0),
        "SteerRePaintSampler": lambda: with_it.sampled(with_it.guider(with_it.source), repaint, *masked),
        "SteerLangevinSampler": lambda: with_it.sampled(with_it.guider(with_it.source), langevin, *masked),
        "SteerDirectEditSampler": lambda: with_it.sampled(with_it.edited(), DIRECT_EDIT, with_it.latent["samples"]),
        "SteerNullText": lambda: with_it.null_text(inversion),
        "SteerDiffEditMask": with_it.contrast,
        "SteerCaptureAttention": with_it.captured,
        "SteerGradientGuider": lambda: with_it.sampled(guided(with_it.guider(with_it.source), 1.0)),
    }.items():
        with pytest.raises(ValueError, match=f"{node}: the model has EasyCache or LazyCache.*remove it"):
            call()
    assert not rows


@pytest.mark.parametrize("name", some(CACHES, "LazyCache"))
def test_what_goes_down_once_takes_a_cache(shapes, name):
    """What is kept is kept, and weight 0 changes nothing; with all calls it is another picture."""
    with_it, plain = Runs(shapes, name, 20), Runs(shapes, name, 20).unpatched(shapes)
    expected, known, mask = with_it.alone(with_it.source), with_it.latent["samples"], hole(height=8, width=8)
    assert relative(plain.alone(plain.source), expected) > 1e-3
    inversion, guider = plain.inverted(0)[2], with_it.guider(with_it.source)
    kept = (mask == 0).expand_as(known)
    for sampler in (
        SteerRePaintSampler.execute(1, 5, 1.0)[0],
        SteerLangevinSampler.execute(1, 0.5)[0],
        SteerBlendedSampler.execute(EULER, 0)[0],
        SteerTrajectoryBlendSampler.execute(EULER, inversion)[0],
    ):
        torch.testing.assert_close(with_it.sampled(guider, sampler, known, mask)[kept], known[kept])
    regions = SteerRegion.execute(left_half(), "circle", 1.0)[0]
    model, positive = SteerPaintWithWords.execute(with_it.model, with_it.clip, RED, regions, 0.0).args
    assert relative(with_it.alone(positive, model), expected) < 1e-5
    injected = SteerInjectAttention.execute(with_it.model, plain.captured()[1], with_it.edit, *ENDS)[0]
    to_the_estimate = with_it.sampled(SteerGradientGuider.execute(guider, Square(), 1.0, 0.0, 1.0, False)[0])
    for out in (with_it.alone(with_it.target, injected), to_the_estimate):
        assert torch.isfinite(out).all()
    two = torch.cat([with_it.noise, with_it.noise])
    try:
        run(guider, EULER, with_it.sigmas, two)
    except RuntimeError:
        pytest.skip(f"this host's {name} takes no batch")  # EasyCache of 0.3.64
    assert torch.isfinite(with_it.sampled(with_it.prompt_to_prompt(*ENDS))).all()


def test_token_merging_runs(shapes):
    """It draws in every call, so nothing more exact can be asked of it."""
    with_it = Runs(shapes, "token merging")
    inversion, known, mask = with_it.inverted(2)[2], with_it.latent["samples"], hole(height=8, width=8)
    guider = host_guider(with_it.model, with_it.source, with_it.null_text(inversion), 3.0)
    regions = SteerRegion.execute(left_half(), "circle", 1.0)[0]
    model, positive = SteerPaintWithWords.execute(with_it.model, with_it.clip, RED, regions, 0.4).args
    for out in (with_it.sampled(guider), with_it.sampled(guided(guider, 1e-3)), with_it.alone(positive, model)):
        assert torch.isfinite(out).all()
    assert with_it.contrast().max() > 0.5
    for sampler in (
        SteerRePaintSampler.execute(2, 1, 1.0),
        SteerLangevinSampler.execute(2, 0.5),
        SteerBlendedSampler.execute(EULER, 0),
    ):
        kept = (mask == 0).expand_as(known)
        torch.testing.assert_close(with_it.sampled(guider, sampler[0], known, mask)[kept], known[kept])
