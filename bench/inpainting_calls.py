"""Inpainting by the number of model calls, on 64 scenes and two seeds: the Langevin Sampler beside its peers."""

import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.samplers
import numpy as np
import torch
from PIL import Image

from ..lab.comfy.runs import counted, encode_texts, host_guider, run_seeded, sigmas_of, with_pytorch_attention
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.models.shapes_unet.diffusers_bridge import load as load_bridge
from ..lab.world.metrics import markdown_table
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.langevin import SteerLangevinSampler
from ..nodes.repaint import SteerRePaintSampler
from . import diffusers_repaint, inpainting, lanpaint
from .inpainting import PIXELS
from .inpainting_peers import CFG, DRAWS, gain, halved, judged
from .turns import to_bytes

SCENES, SEEDS, BATCH, CALLS = 64, (0, 1), 16, (30, 60, 110, 255)
SHEET, FOLDER = 4, Path(__file__).parent
OURS = "Steer Langevin"
PEERS = ("Steer RePaint", "diffusers RePaint, eta 0", "diffusers RePaint, eta 1", "LanPaint, Image First")
PLAIN = ("Steer Blended, DDIM eta 1", "host masked, euler_ancestral")
INNER = {30: (12, 3), 60: (24, 3), 110: (28, 5), 255: (65, 5)}
"""Steps and inner calls of the Langevin Sampler."""
JUMPS = {30: (20, 2, 10), 60: (20, 5, 10), 110: (20, 10, 10), 255: (30, 10, 5)}
"""Steps, resamples and jump length of RePaint, ours and diffusers'."""
LANPAINT_STEPS = {30: 8, 60: 15, 110: 27, 255: 60}  # 5 inner calls a step, fewer towards the end
LEAST = 1e-6  # of an error
PROBLEMS = {"half an object": halved, "empty hole": inpainting.problem}
SHOWN = {"half an object": ("inside", "outside"), "empty hole": ("background", "outside")}


@dataclass(frozen=True)
class Point:
    """A method at about so many model calls, on a problem with a seed."""

    method: str
    calls: int
    problem: str
    seed: int


def points(peers: tuple[str, ...] = PEERS) -> list[Point]:
    """What is measured: all at 30, 60 and 110 calls, three at 255, masked sampling at 110."""
    few = [(name, calls) for calls in CALLS[:3] for name in (OURS, *peers)]
    some = [(name, 110) for name in PLAIN] + [(name, 255) for name in (OURS, PEERS[0], PEERS[2])]
    return [Point(name, calls, problem, seed) for problem in PROBLEMS for seed in SEEDS for name, calls in few + some]


def run() -> str:
    bench = Bench()
    missing = PEERS if bench.peer else PEERS[:-1]
    batches = [range(at, at + BATCH) for at in range(0, SCENES, BATCH)]
    sheet(bench, PEERS[0], OURS)
    return text({point: [bench.measured(point, scenes) for scenes in batches] for point in points(missing)})


def sheet(bench: "Bench", *names: str) -> None:
    """Draws the first scenes of half an object: the truth, the hole, and what methods make of it at 110 calls."""
    problem, scenes = "half an object", range(SHEET)
    problems, _ = given(problem, scenes)
    holes = [np.where(each["hole"][..., None], 128, each["given"]).astype(np.uint8) for each in problems]
    rows = {"truth": [each["given"] for each in problems], "given": holes}
    rows |= {name: bench.pictures(Point(name, 110, problem, 0), scenes) for name in names}
    cells = [(Image.fromarray(picture), name) for name, pictures in rows.items() for picture in pictures]
    contact_sheet(cells, FOLDER / "inpainting_calls.png", "Half an object, 110 calls, the first scenes", SHEET)


class Bench:
    """The checkpoint in the host and in diffusers, and the methods on it."""

    def __init__(self):
        model, self.clip, self.vae = stock.load()
        self.model, self.rows = counted(with_pytorch_attention(model))
        self.bridge, self.peer = load_bridge(), lanpaint.load()
        self.bridge.unet.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[0])))

    def hosted(self, sampler, steps, run=run_seeded):
        def method(texts, latents, masks, seed):
            empty = encode_texts(self.clip, [""])
            guider = host_guider(self.model, encode_texts(self.clip, texts), empty, CFG)
            return run(guider, sampler, sigmas_of(self.model, steps), latents, masks, seed)

        return method

    def method(self, name: str, calls: int):
        """What makes latents of (texts, latents, masks, seed) in about so many calls."""
        if name == "Steer RePaint":
            steps, resamples, jump = JUMPS[calls]
            return self.hosted(SteerRePaintSampler.execute(resamples, jump, 1.0)[0], steps)
        if name == "Steer Langevin":
            steps, inner = INNER[calls]
            return self.hosted(SteerLangevinSampler.execute(inner, 0.8)[0], steps)
        if name == "Steer Blended, DDIM eta 1":
            return self.hosted(SteerBlendedSampler.execute(SteerDDIMSampler.execute(1.0)[0], 0)[0], calls)
        if name == "host masked, euler_ancestral":
            return self.hosted(comfy.samplers.sampler_object("euler_ancestral"), calls)
        if name.startswith("diffusers RePaint"):
            schedule = diffusers_repaint.scheduler(*JUMPS[calls], eta=float(name[-1]))
            return partial(diffusers_repaint.inpaint, self.bridge, schedule, CFG)
        euler, mode = comfy.samplers.sampler_object("euler"), name.removeprefix("LanPaint, ")
        return self.hosted(euler, LANPAINT_STEPS[calls], partial(lanpaint.inpaint, self.peer, mode))

    def latents(self, point: Point, scenes: range):
        problems, pictures = given(point.problem, scenes)
        holes = torch.stack([torch.from_numpy(each["hole"]) for each in problems]).float()
        latents = inpainting.without_hole(self.vae, pictures, holes, grey=False)
        texts, masks = [each["caption"] for each in problems], holes[:, None, ::PIXELS, ::PIXELS]
        return self.method(point.method, point.calls)(texts, latents, masks, 10_000 * point.seed + scenes[0])

    def pictures(self, point: Point, scenes: range) -> np.ndarray:
        return to_bytes(self.vae.decode(self.latents(point, scenes)))

    def measured(self, point: Point, scenes: range) -> dict:
        """Each scene's figures by its number, the calls as rows of the model over two, the process's seconds."""
        problems, pictures = given(point.problem, scenes)
        rows, started = sum(self.rows), time.process_time()
        made = self.latents(point, scenes)
        seconds = time.process_time() - started
        round_trips = to_bytes(self.vae.decode(self.vae.encode(pictures)))
        figures = map(judged, problems, round_trips, to_bytes(self.vae.decode(made)))
        return {"figures": dict(zip(scenes, figures, strict=True)), "seconds": seconds,
                "pairs": (sum(self.rows) - rows) / 2 / len(made)}  # fmt: skip


def given(problem: str, scenes: range):
    """The problems of these scenes, and their pictures (batch, rows, columns, 3)."""
    problems = [PROBLEMS[problem](random.Random(index), two=index % 2 == 1) for index in scenes]
    return problems, torch.stack([torch.from_numpy(each["given"].copy()) for each in problems]).float() / 255


def text(results: dict[Point, list[dict]]) -> str:
    tables = []
    for problem in PROBLEMS:
        rows = []
        for calls in CALLS:
            for name in (OURS, *PEERS, *PLAIN):
                of = [part for point, parts in results.items() for part in parts
                      if (point.method, point.calls, point.problem) == (name, calls, problem)]  # fmt: skip
                if of:
                    rows.append(row(name, calls, of, SHOWN[problem][0]))
        differences = [
            difference(results, problem, ours, name, calls)
            for ours in (110, 60)
            for calls in (110, 60)
            for name in (*PEERS, *PLAIN)
            if ours <= calls
        ]
        tables.append(
            f"## {problem.capitalize()}\n\n{markdown_table(rows)}\n{OURS} against each, in dB (above 0: it is better), "
            f"on the samples that both did:\n\n{markdown_table([each for each in differences if each])}"
        )
    return TEXT + "\n" + "\n".join(tables) + "\n\n![sheet](inpainting_calls.png)"


TEXT = f"""# Inpainting by the number of model calls

The scenes and the holes of [inpainting_peers](inpainting_peers.md), cleared in the latents (the picture is encoded
whole, and the latents in the hole are zero, for every method), cfg {CFG:g}, scheduler normal, PyTorch's attention.
Samples: scenes times seeds; the scenes and the seeds of the noise are the same for all. Calls: of the guider. Pairs:
rows of the model over two; calls of the Langevin Sampler that move the hole have one row. Seconds: of the process, a
sample, the mean. Langevin: inner 3, 3, 5 and 5 at 30, 60, 110 and 255 calls. RePaint: 20 steps, jumps of 10, as many
resamples as fit, at 255 calls 30 steps with jumps of 5. LanPaint: its defaults with the host's euler. Masked sampling,
the host's and Blended: so many steps.

Right: the reader finds the object's colour and shape. PSNR: of the whole hole against the VAE round trip for half an
object, of the hole a latent pixel or more from what was painted for the empty hole; the mean of the samples' PSNRs,
their median, and the PSNR of the mean error, which the worst samples decide. A sample counts as 60 dB at most (a
background may come back exactly). IoU: what of the object is in the hole, with the truth. Outside: PSNR of the mean
error against the given picture outside the hole. Intervals: 95%, over the choice of samples; for the empty hole of the
samples that both got right.
"""


def row(name: str, calls: int, parts: list[dict], key: str) -> dict:
    figures = [each for part in parts for each in part["figures"].values()]
    errors = np.maximum([each[key] for each in figures], LEAST)
    shown = {"right": f"{100 * np.mean([each['right'] for each in figures]):.0f}%"}
    shown["mean PSNR"] = f"{np.nanmean(-10 * np.log10(errors)):.1f} dB"
    shown["median"], shown["of the mean error"] = (
        f"{-10 * np.log10(middle(errors)):.1f} dB" for middle in (np.nanmedian, np.nanmean)
    )
    if key == "inside":
        shown["IoU"] = f"{np.mean([each['IoU'] for each in figures]):.3f}"
    seconds = sum(part["seconds"] for part in parts) / len(figures)
    pairs = np.mean([part["pairs"] for part in parts])
    return {"method": name, "calls": calls, "pairs": f"{pairs:.0f}", "samples": len(figures), **shown,
            "seconds": f"{seconds:.2f}"}  # fmt: skip


def difference(results: dict[Point, list[dict]], problem: str, ours: int, name: str, calls: int) -> dict | None:
    """Ours at so many calls against a peer at its own number; None where one of them was not run."""

    def figures(method: str, calls: int) -> dict:
        return {(point.seed, scene): each for point, parts in results.items() for part in parts
                for scene, each in part["figures"].items()
                if (point.method, point.calls, point.problem) == (method, calls, problem)}  # fmt: skip

    mine, other = figures(OURS, ours), figures(name, calls)
    pairs = [(mine[key], other[key]) for key in mine if key in other]
    if problem == "empty hole":
        pairs = [pair for pair in pairs if all(each["right"] for each in pair)]
    if not pairs:
        return None
    inner, outside = (np.maximum([[each[key] for each in pair] for pair in pairs], LEAST) for key in SHOWN[problem])
    return {"ours at": ours, "against": name, "at": calls, "samples": len(pairs), "of the mean PSNR": mean_gain(inner),
            "of the mean error": gain(inner), "outside": gain(outside)}  # fmt: skip


def mean_gain(errors: np.ndarray) -> str:
    """By how many dB the first of each two errors is below the second, the mean, with its bootstrapped 95% interval."""
    decibels = 10 * np.log10(errors[:, 1] / errors[:, 0])
    decibels = decibels[np.isfinite(decibels)]
    rows = np.random.default_rng(0).integers(0, len(decibels), (DRAWS, len(decibels)))
    low, high = np.percentile(decibels[rows].mean(1), (2.5, 97.5))
    return f"{decibels.mean():+.1f} ({low:+.1f} to {high:+.1f})"
