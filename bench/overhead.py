"""What Steer's DDIM and guider cost beside the host's euler and CFGGuider, the model's rows being the same."""

import statistics
import time

import comfy.samplers
import torch

from ..lab.comfy.runs import encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.models import stock
from ..lab.world.metrics import markdown_table
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.guidance import SteerCFGGuider

STEPS, REPEATS = 20, 41
TEXTS = "a red circle on a blue background", "a green star on a white background"


def run() -> str:
    model, clip, _ = stock.load()
    positive, negative = (encode_texts(clip, [text]) for text in TEXTS)
    host = host_guider(model, positive, negative, 7.5)
    steer = SteerCFGGuider.execute(model, positive, negative, 7.5, 0.0, 1.0, 1.0)[0]
    euler, ddim = comfy.samplers.sampler_object("euler"), SteerDDIMSampler.execute(0.0)[0]
    sigmas = sigmas_of(model, STEPS)
    base = ("host CFGGuider, host euler", host, euler)
    rows = []
    for name, guider, sampler in (
        base,
        ("host CFGGuider, SteerDDIMSampler", host, ddim),
        ("SteerCFGGuider, host euler", steer, euler),
        ("SteerCFGGuider, SteerDDIMSampler", steer, ddim),
    ):
        ratio, seconds = median_ratio((guider, sampler), base[1:], sigmas)
        rows.append({"guider, sampler": name, "median ratio": f"{ratio:.3f}", "ms a run": f"{1000 * seconds:.0f}"})
    return (
        f"# Overhead\n\nSeconds of one run of {STEPS} steps at cfg 7.5, batch 1 (shapes checkpoint), over the host's "
        f"own: median of {REPEATS} ratios, each of two runs made one after the other in turns. The first row is the "
        f"host against itself: the noise of the measurement.\n\n{markdown_table(rows)}"
    )


def median_ratio(ours, theirs, sigmas) -> tuple[float, float]:
    """The median over pairs of seconds(ours) / seconds(theirs), the order within pairs alternating; and our median."""
    latent, ratios, ours_seconds = torch.zeros(1, 4, 16, 16), [], []
    for repeat in range(REPEATS + 2):
        pair = {}
        for which in (0, 1) if repeat % 2 else (1, 0):
            started = time.perf_counter()
            run_seeded(*(ours, theirs)[which], sigmas, latent)
            pair[which] = time.perf_counter() - started
        if repeat >= 2:  # the first runs warm up
            ratios.append(pair[0] / pair[1])
            ours_seconds.append(pair[0])
    return statistics.median(ratios), statistics.median(ours_seconds)
