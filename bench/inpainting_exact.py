"""Inpainting held to the exact law of the hole, in closed form: every sampler by the number of model calls."""

from functools import partial

import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from ..lab.comfy.runs import host_guider, run_seeded, sigmas_of
from ..lab.models import stock
from ..lab.models.shapes_unet.diffusers_bridge import SCHEDULER
from ..lab.world.metrics import markdown_table
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.host.law import noise_law
from ..nodes.langevin import SteerLangevinSampler
from ..nodes.repaint import SteerRePaintSampler
from ..samplers.langevin import model_calls
from ..tests.host_models import EPS, FLOW, mean_conditioning, with_law
from . import diffusers_repaint, lanpaint
from .inpainting_calls import CALLS, JUMPS
from .mixtures import Conditional, Mixture, Problem, fields, planted

LAWS = {EPS: "karras", FLOW: "simple"}
"""Schedulers of the host."""
SHORT = {30: (10, 3, 1), 60: (7, 10, 1), 110: (12, 10, 1), 255: (26, 10, 1)}
"""Steps, resamples and jump length of RePaint with jumps of 1."""
LANPAINT_STEPS = {30: 8, 60: 16, 110: 30, 255: 69}  # 5 inner calls a step, fewer towards the end
INNER = {30: 3, 60: 3, 110: 5, 255: 5}


def run() -> str:
    base, peer, tables = stock.load()[0], lanpaint.load(), []
    for problem in (planted(), fields()):
        for law in LAWS:
            bench = Bench(base, peer, problem, law)
            rows = [bench.row(name, calls) for calls in CALLS for name in bench.names()]
            tables.append(f"## {problem.name}, {law}, {LAWS[law]}\n\n{markdown_table([bench.truth(), *rows])}")
    missing = "" if peer else f"\nLanPaint is not in the tables: {lanpaint.VARIABLE} does not name a checkout of it.\n"
    return TEXT + missing + "\n" + "\n".join(tables)


TEXT = """# Inpainting beside the exact law

Mixtures of Gaussian fields as models of the host, eps and flow, whose answers are exact; a part of a picture is known,
and the law of the rest then is known in closed form. Planted: two modes, 4 x 16 x 16, the right half a hole, one
picture, 256 samples (standard error of a share: .03). Fields: four modes of different covariances, 4 x 8 x 8, three
rows and three columns known, 5 pictures, 64 samples each. Every hole starts from noise alone, cfg 1. Calls are counted.

Share: of the first mode, the mean over the pictures; .62 of planted's is exact. Distance: half the sum of the
differences of the shares from the exact ones.
Slope: of the hole on what the known part says of it, 1 if exact. Variance: over the exact one, the mean over all
directions of the hole, the finest included; the last step to 0 leaves the posterior mean there, .77 of planted's at the
lowest level of karras for an otherwise exact sampler. Energy: the distance to 512 exact samples, in thousandths of
their mean distance. RePaint j10, j1: resamples and jumps of RePaint Sampler; diffusers' at the same schedule, eps only.
"""


class Bench:
    """A problem as a model of the host."""

    def __init__(self, base, peer, problem: Problem, law: str):
        self.peer, self.problem, self.law, self.calls = peer, problem, law, 0
        self.model = self._planted(base)
        self.mask = problem.hole.float()[None, None]

    def _planted(self, base):
        model = with_law(base, self.law)
        model.add_object_patch("model_type", getattr(comfy.model_base.ModelType, self.law.upper()))

        def wrapper(_, args):
            self.calls += 1
            sigma = float(args["timestep"].max())
            return denoised(self.problem.mixture, args["input"], sigma, self.law)

        model.set_model_unet_function_wrapper(wrapper)
        return model

    def names(self) -> list[str]:
        peers = [f"diffusers RePaint, eta {eta}" for eta in (0, 1)] if self.law == EPS else []
        peers += ["LanPaint"] if self.peer else []
        return ["host masked", "Blended", "RePaint j10", "RePaint j1", *peers, "Langevin"]

    def row(self, name: str, calls: int) -> dict:
        self.calls = 0
        figures = self.problem.judged(self.results(name, calls))
        return shown(name, str(self.calls), figures)

    def truth(self) -> dict:
        """Exact samples, as a row."""
        problem, results = self.problem, self.problem.known()
        for index, picture in enumerate(problem.pictures):
            drawn = Conditional(problem.mixture, picture, problem.hole).sample(
                problem.samples, torch.Generator().manual_seed(1000 + index)
            )
            part = results[index * problem.samples : (index + 1) * problem.samples]
            part.flatten(2)[..., problem.hole.flatten()] = drawn.float()
        return shown("exact samples", "", problem.judged(results))

    def results(self, name: str, calls: int) -> Tensor:
        if name.startswith("diffusers"):
            return self._diffusers(float(name[-1]), calls)
        sampler, steps, run = self._hosted(name, calls)
        sigmas = self._sigmas(steps)
        guider = host_guider(self.model, mean_conditioning(0), mean_conditioning(0), 1.0)
        known = self.model.model.process_latent_out(self.problem.known())
        made = run(guider, sampler, sigmas, known, self.mask.expand(len(known), -1, -1, -1), 1)
        return self.model.model.process_latent_in(made)

    def _hosted(self, name: str, calls: int):
        """(sampler, steps, what runs it)"""
        if name == "LanPaint":
            euler = comfy.samplers.sampler_object("euler")
            return euler, LANPAINT_STEPS[calls], partial(lanpaint.inpaint, self.peer, "Image First")
        if name == "Langevin":
            return SteerLangevinSampler.execute(INNER[calls], 0.8)[0], self._steps_within(calls), run_seeded
        if name.startswith("RePaint"):
            steps, resamples, jump = (SHORT if name.endswith("j1") else JUMPS)[calls]
            return SteerRePaintSampler.execute(resamples, jump, 1.0)[0], steps, run_seeded
        if name == "Blended":
            return SteerBlendedSampler.execute(SteerDDIMSampler.execute(1.0)[0], 0)[0], calls, run_seeded
        return comfy.samplers.sampler_object("euler_ancestral"), calls, run_seeded

    def _sigmas(self, steps: int) -> Tensor:
        return sigmas_of(self.model, steps, LAWS[self.law])

    def _steps_within(self, calls: int) -> int:
        """The most steps of the Langevin Sampler that make no more calls."""
        law = noise_law(self.model.get_model_object("model_sampling"))
        return max(steps for steps in range(2, calls)
                   if model_calls(self._sigmas(steps).tolist(), law, INNER[calls]) <= calls)  # fmt: skip

    def _diffusers(self, eta: float, calls: int) -> Tensor:
        """The loop of `diffusers_repaint.inpaint` with the closed form as the network."""
        schedule, generator = diffusers_repaint.scheduler(*JUMPS[calls], eta=eta), torch.Generator().manual_seed(1)
        known, keep = self.problem.known(), 1.0 - self.mask
        betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000).double() ** 2
        alpha_bar = torch.cumprod(1 - betas, 0)
        z, last = torch.randn(known.shape, generator=generator), schedule.timesteps[0] + 1
        for t in schedule.timesteps:
            if t < last:
                signal, sigma = float(alpha_bar[t]) ** 0.5, float((1 - alpha_bar[t]) / alpha_bar[t]) ** 0.5
                x, self.calls = z / signal, self.calls + 1
                eps = (x - denoised(self.problem.mixture, x, sigma, EPS)) / sigma
                z = schedule.step(eps, t, z, known, keep, generator).prev_sample
            else:
                z = schedule.undo_step(z, last, generator)
            last = t
        return z


def denoised(mixture: Mixture, x: Tensor, sigma: float, law: str) -> Tensor:
    return mixture.denoise(x, 1.0 - sigma if law == FLOW else 1.0, sigma)


def shown(name: str, calls: str, figures: dict[str, float]) -> dict:
    return {"method": name, "model calls": calls} | {
        key: f"{value:.1f}" if key == "energy" else f"{value:.2f}" for key, value in figures.items()
    }
