import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import sigmas_of
from steer.nodes.sdedit import SteerSDEditSigmas
from steer.tests.host_models import EPS, FLOW, with_law


@pytest.mark.parametrize("law", [EPS, FLOW])
@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_every_scheduler_spends_its_steps_below_the_strength(shapes, law, scheduler, strength):
    model = with_law(shapes[0], law)
    sigmas, start_step, start_sigma = SteerSDEditSigmas.execute(model, scheduler, 15, strength).args
    sampling = model.get_model_object("model_sampling")
    expected = min(sampling.percent_to_sigma(1 - strength), float(sampling.sigma_max))
    assert start_sigma == pytest.approx(expected) and float(sigmas[0]) == pytest.approx(expected)
    assert len(sigmas) == 16 and (sigmas[1:] < sigmas[:-1]).all() and sigmas[-1] == 0
    assert start_step >= 0


@pytest.mark.parametrize("scheduler", ["normal", "simple", "karras", "exponential", "sgm_uniform"])
def test_full_strength_is_the_hosts_schedule(shapes, scheduler):
    ours = SteerSDEditSigmas.execute(shapes[0], scheduler, 20, 1.0)[0]
    torch.testing.assert_close(ours, sigmas_of(shapes[0], 20, scheduler))


def test_start_step_is_where_the_hosts_own_run_stands(shapes):
    """KSamplerAdvanced with start_step + steps steps from start_step spends the same levels, but for the first."""
    sigmas, start_step, _ = SteerSDEditSigmas.execute(shapes[0], "karras", 12, 0.5).args
    whole = sigmas_of(shapes[0], start_step + 12, "karras")
    torch.testing.assert_close(sigmas[1:], whole[start_step + 1 :])


def on_family(family):
    sampling = family.model().get_model_object("model_sampling")
    sigmas, _, start = SteerSDEditSigmas.execute(family.model(), "normal", 7, 0.6).args
    assert float(sigmas[0]) == pytest.approx(start) == pytest.approx(sampling.percent_to_sigma(0.4))
    assert len(sigmas) == 8 and (sigmas[1:] < sigmas[:-1]).all() and sigmas[-1] == 0


def check_sdedit(world, given, run, output):
    sigmas, start_step, start_sigma = output
    assert sigmas.dtype == torch.float32 and len(sigmas) == int(given["steps"]) + 1
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0.0 and start_step >= 0
    assert float(sigmas[0]) == pytest.approx(start_sigma, rel=1e-6) and torch.isfinite(sigmas).all()
    top = given["model"].get_model_object("model_sampling").sigma_max
    assert start_sigma <= float(top) * (1 + 1e-6)


ORACLE = {
    "SteerSDEditSigmas": ("the first level is that of the strength, then down to 0", on_family),
}
CHECK = {
    "SteerSDEditSigmas": (check_sdedit, ()),
}
USUAL = {
    "SteerSDEditSigmas": {"steps": (1, 2)},
}
