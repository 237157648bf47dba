import torch
from steer.lab.comfy.runs import noise_of, run, sigmas_of
from steer.nodes.toy import SteerToySampler
from steer.tests import checks, oracles
from steer.tests.host_models import relative


def test_all_of_the_pull_leaves_nothing(shapes, guider):
    out = run(guider, SteerToySampler.execute(1.0)[0], sigmas_of(shapes[0], 3), noise_of((1, 4, 16, 16)))
    assert out.abs().max() < 1e-5


def on_family(family):
    guider, sigmas, noise = oracles.guider_of(family), oracles.from_level(family), oracles.noise_for(family)
    plain = run(guider, oracles.EULER, sigmas, noise)
    assert relative(run(guider, SteerToySampler.execute(0.0)[0], sigmas, noise), plain) < 1e-4
    assert torch.isfinite(plain).all()


ORACLE = {"SteerToySampler": ("without pull it equals the host's euler", on_family)}
CHECK = {"SteerToySampler": (checks.sampler, checks.OF_GUIDER)}
USUAL = {"SteerToySampler": {"pull": (0.0, 0.5)}}
