import re

import pytest
import torch
from steer.samplers.inversion import Inversion, Level
from steer.samplers.inversion_report import DOES_NOT_HOLD, report
from steer.samplers.noise_law import VARIANCE_EXPLODING

LATENTS = (torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.tensor([[[1.0, -1.0]]]))  # of std 1.41
INVERSION = Inversion((2.0, 1.0, 0.0), LATENTS, VARIANCE_EXPLODING, "SD15", True)


def levels(*residuals):
    """From the source up."""
    given = zip((1.0, 2.0), (3, 2), residuals, strict=True)
    return [
        Level(None, None, sigma, None if left is None else torch.tensor([1e-9, left]), calls)
        for sigma, calls, left in given
    ]


def test_the_verdict_comes_first_and_every_step_last():
    text = report(INVERSION, levels(1e-5, 2e-5), [3e-5, 4e-5], 1e-4).splitlines()
    assert text == [
        "The inversion holds: sampled back, the largest error is 2.8e-05 of the latents' std.",
        "Inverted to sigma 2 in 2 steps, 5 model calls.",
        "The worst step: 2 -> 1: 2 calls, residual 2.0e-05, round trip 3.0e-05",
        "",
        "2 -> 1: 2 calls, residual 2.0e-05, round trip 3.0e-05",
        "1 -> 0: 3 calls, residual 1.0e-05, round trip 4.0e-05",
    ]


@pytest.mark.parametrize(
    "residuals, errors, worst",
    [
        ((3e-5, 2e-5), [3e-5, 4e-5], "1 -> 0: 3 calls, residual 3.0e-05, round trip 4.0e-05"),
        ((None, None), [0.03, 0.04], "2 -> 1: 2 calls, round trip 3.0e-02"),  # where the error grows most
        ((None, None), [0.01, 0.04], "1 -> 0: 3 calls, round trip 4.0e-02"),
        ((3e-5, 2e-5), None, "1 -> 0: 3 calls, residual 3.0e-05"),
        ((None, None), None, None),
    ],
)
def test_the_worst_step(residuals, errors, worst):
    told, _, rows = report(INVERSION, levels(*residuals), errors, 1e-4).partition("\n\n")
    assert [line for line in told.splitlines() if "worst" in line] == [f"The worst step: {worst}"] * bool(worst)
    assert worst is None or worst in rows.splitlines()
    assert len(rows.splitlines()) == 2


def test_without_a_check_it_says_so():
    assert report(INVERSION, levels(1e-5, 2e-5), None, 1e-4).startswith("The inversion was not sampled back")


def complaints(residuals, errors, *given, **named):
    """What is said besides the verdict that all is well and the figures."""
    text = report(INVERSION, levels(*residuals), errors, 1e-4, *given, **named).partition("\n\n")[0]
    return [line for line in text.splitlines() if line.startswith((DOES_NOT_HOLD, "Not solved"))]


@pytest.mark.parametrize(
    "residuals, errors, guidance, said, unsaid",
    [
        ((1e-5, 0.3), [0.1, 0.9], "", "hold: the step 2 -> 1 .residual 3.0e-01 after 2 calls. is not solved", "cfg"),
        ((0.3, 1e-5), [0.1, 0.9], "", "hold: the step 1 -> 0 .residual 3.0e-01 after 3 calls. is not solved", "cfg"),
        ((0.3, 1e-5), [0.1, 0.9], "at cfg 5", "hold: at cfg 5, and.*Besides, the step 1 -> 0", "draws noise"),
        ((1e-5, 1e-5), [0.1, 0.9], "at cfg 5", "hold: at cfg 5, and", "Besides"),
        ((1e-5, 1e-5), [0.1, 0.9], "", "hold: each step is solved, and its small error grows", "cfg"),
        ((None, None), [0.1, 0.9], "", "hold: plain inversion solves no step exactly", "cfg"),
        ((0.3, 1e-5), None, "", "hold: the step 1 -> 0", "cfg"),
        ((0.05, 1e-5), None, "", "^Not solved to the tolerance 0.0001: 1 of 2 steps, the worst 1 -> 0", "hold"),
        (
            (0.3, 0.2),
            [0.1, 0.1],
            "at cfg 5",
            "^Not solved to the tolerance 0.0001: 2 of 2 steps, the worst 1 -> 0",
            "hold|cfg",
        ),
    ],
)
def test_it_says_what_is_the_case(residuals, errors, guidance, said, unsaid):
    (line,) = complaints(residuals, errors, guidance)
    assert re.search(said, line) and not re.search(unsaid, line)


def test_where_the_model_answers_differently_that_is_the_cause():
    (line,) = complaints((0.3, 0.3), [0.1, 0.9], "at cfg 5", steady=False)
    assert "draws noise or remembers earlier calls" in line and "cfg" not in line and "solved" not in line


@pytest.mark.parametrize(
    "residuals, errors", [((None, None), [0.01, 0.02]), ((None, None), None), ((0.2, 0.2), [0, 1e-5])]
)
def test_where_nothing_is_amiss_nothing_is_said(residuals, errors):
    """As where the picture comes back within the tolerance all the same."""
    assert not complaints(residuals, errors, "at cfg 5")
