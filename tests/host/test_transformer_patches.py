"""The host's patches for transformers and clips under Steer's guiders and samplers act as they do in the host."""

import pytest
import torch
from steer.lab.comfy.runs import counted, host_guider, noise_of, run
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.sdedit import SteerSDEditSigmas
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.companions import EULER, Square, patched
from steer.tests.host_models import relative
from steer.tests.oracles import check_edit_guider
from steer.tests.tiny_transformers import TINY

GUIDANCE = "Skip Layer", "Skip Layer Simple", "CFG-Zero*", "RescaleCFG"
WINDOWS = "Context Windows", "FreeNoise"
QUICK = {("Flux", "Skip Layer"), ("SD3", "Skip Layer Simple"), ("Wan", "Context Windows")}
CASES = [
    pytest.param(family, name, marks=() if (family, name) in QUICK else pytest.mark.slow)
    for family, names in {
        "Flux": (*GUIDANCE, "NAG", "Temporal Score Rescaling"),
        "SD3": (*GUIDANCE, "Skip Layer SD3"),
        "Wan": (*GUIDANCE, *WINDOWS),
    }.items()
    for name in names
]


class Runs:
    """A patched model of a family, and what is run on it."""

    def __init__(self, family, name):
        tiny = next(tiny for tiny in TINY if tiny.name == family)
        self.plain = tiny.model()
        self.model = patched(self.plain, name)
        frames = 7 if name in WINDOWS else tiny.clip
        shape = (*tiny.shape[:2], frames, *tiny.shape[3:]) if len(tiny.shape) == 5 else tiny.shape
        self.noise, self.latent = noise_of(shape, 1), noise_of(shape, 5)
        self.source, self.target, self.negative = (tiny.conditioning(seed) for seed in (1, 2, 3))
        # a part of the way, where random weights are tame
        self.sigmas = SteerSDEditSigmas.execute(self.model, "normal", 3, 0.2)[0]

    def guider(self, cfg=3.0, model=None):
        return host_guider(model or self.model, self.source, self.negative, cfg)

    def sampled(self, guider, sampler=EULER, *mask):
        return run(guider, sampler, self.sigmas, self.noise, self.latent, *mask)


@pytest.mark.parametrize("family, name", CASES)
def test_guider_and_samplers(family, name):
    """The host's guider and euler with the same patch, which acts; where all is painted, the masking ones too."""
    on = Runs(family, name)
    expected, everything = on.sampled(on.guider()), torch.ones_like(on.noise[:, :1])
    assert relative(expected, on.sampled(on.guider(model=on.plain))) > 1e-3
    guider = SteerCFGGuider.execute(on.model, on.source, on.negative, 3.0, 0.0, 1.0, 1.0)[0]
    assert relative(on.sampled(guider), expected) < 1e-5
    for sampler, mask in (
        (SteerDDIMSampler.execute(0.0), ()),
        (SteerRePaintSampler.execute(1, 1, 0.0), (everything,)),
        (SteerLangevinSampler.execute(1, 0.5), (everything,)),
        (SteerBlendedSampler.execute(EULER, 0), (everything,)),
    ):
        assert relative(on.sampled(guider, sampler[0], *mask), expected) < 1e-4


@pytest.mark.parametrize("family, name", CASES)
def test_gradient_guider(family, name):
    """At scale 0 the run without it, to the last bit; else the loss falls, through the model and not."""
    on = Runs(family, name)
    plain = on.sampled(on.guider())

    def distance(scale, through_model):
        guider = SteerGradientGuider.execute(on.guider(), Square(), scale, 0.0, 1.0, through_model, None, 1.0)[0]
        out = on.sampled(guider)
        assert torch.equal(out, plain) == (scale == 0.0)
        return (on.model.model.process_latent_in(out) - 0.8).square().mean()

    for through_model in (True, False):
        assert distance(0.5, through_model) < 0.97 * distance(0.0, through_model)


@pytest.mark.parametrize("family, name", CASES)
def test_direct_edit(family, name):
    """Each prompt's estimate is that of the host's guider with the same patch."""

    def make():
        on = Runs(family, name)
        return on.model, on.source, on.target, on.negative

    check_edit_guider(make, Runs(family, name).latent, 0.5, 2.0, 3.0)


@pytest.mark.parametrize("family, name", [case for case in CASES if case.values[1] != "FreeNoise"])
def test_inversion_and_trajectory_blend(family, name):
    """Back to the picture, where sampling goes on with the same patch."""
    on = Runs(family, name)
    on.sigmas = SteerSDEditSigmas.execute(on.model, "normal", 6, 0.1)[0]
    latent, noise, inversion = inverted(on)
    on.noise, mask = noise.generate_noise(latent), torch.zeros_like(on.noise[:, :1])
    mask[..., 2:5, 3:7] = 1.0
    for sampler, *masked in ((EULER,), (SteerTrajectoryBlendSampler.execute(EULER, inversion)[0], mask)):
        assert relative(on.sampled(on.guider(1.0), sampler, *masked), on.latent) < 2e-3


@pytest.mark.parametrize("family, name", [case for case in CASES if case.values[1] not in WINDOWS])
def test_diffedit(family, name):
    """The contrast of two prompts has no guidance in it; NAG's is in the network, where both are in one call."""
    on = Runs(family, name)
    heats = [
        SteerDiffEditMask.execute(model, on.source, on.target, {"samples": on.latent}, 0.5, 2, 0.5, 0).args[1]
        for model in (on.model, on.plain)
    ]
    assert torch.allclose(*heats, atol=1e-3)


def test_inversion_says_that_freenoise_would_shuffle_its_noise():
    """Before the first model call: a run of the inverted noise begins with other noise."""
    on = Runs("Wan", "FreeNoise")
    on.model, rows = counted(on.model)
    with pytest.raises(ValueError, match="SteerDDIMInversion: the model has context windows with freenoise"):
        inverted(on)
    assert not rows


def inverted(on):
    return SteerDDIMInversion.execute(on.guider(1.0), on.sigmas, {"samples": on.latent}, 8, 1e-5, False).args
