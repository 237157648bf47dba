import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.samplers.toy import toy
from steer.tests.closed_form import last


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, RECTIFIED_FLOW])
def test_is_ddim_without_pull_and_nothing_with_all_of_it(law):
    x, sigmas = torch.tensor([[1.0, -2.0]]), (1.0, 0.5, 0.0)

    def denoise(x, sigma):
        return torch.ones_like(x)

    assert torch.equal(last(toy(denoise, x, sigmas, law, 0.0)), last(ddim(denoise, x, sigmas, law)))
    assert not last(toy(denoise, x, sigmas, law, 1.0)).any()
