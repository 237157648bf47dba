"""DiffusionCLIP on the shapes: a LoRA fitted to change the colour of some pictures, on pictures that it never saw."""

import random
import resource
import time
from dataclasses import dataclass

import comfy.samplers
import comfy.sd
import numpy as np
import torch
from torch import Tensor

from ..lab.comfy.runs import encode, host_guider
from ..lab.comfy.runs import run as sample
from ..lab.models import stock
from ..lab.world.data import Scene, render, sample_scene
from ..lab.world.metrics import grown, iou, markdown_table, object_mask, psnr
from ..lab.world.reader import read_image
from ..nodes.clip_direction import SteerCLIPDirectionLoss
from ..nodes.fit_lora import SteerFitLoRA
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.sdedit import SteerSDEditSigmas
from .turns import to_bytes

FITTED, FRESH, SEED, FRESH_SEED = 8, 24, 31000, 35000  # settings were chosen on scenes of other seeds
STEPS, REFINE = 4, 4
RANK, RATE, ITERATIONS, CUTOUTS, SMALLEST = 8, 1e-3, 5, 2, 0.9
SOURCE = "red"
TEXT = "a {} circle on a white background"
STRENGTHS = 1.0, 0.5
MARGIN = 3
"""Pixels about the object that do not count as background."""
Pictures = Tensor
"""(batch, height, width, 3), 0 to 1"""


@dataclass(frozen=True)
class Task:
    """To which colour, and with what."""

    target: str
    strength: float
    keep: float


TASKS = Task("yellow", 0.5, 0.5), Task("blue", 0.8, 0.1)


def scenes_of(seed: int, count: int, target: str) -> list[Scene]:
    """The first scenes from this seed on with one object of the source's colour, and not on the target's."""
    scenes = (sample_scene(random.Random(seed + index), two=False) for index in range(100 * count))
    fitting = (scene for scene in scenes if scene["objs"][0]["color"] == SOURCE and scene["bg"] != target)
    return [next(fitting) for _ in range(count)]


def pictures_of(scenes: list[Scene]) -> Pictures:
    return torch.stack([torch.from_numpy(render(scene).copy()) for scene in scenes]).float() / 255


class Model:
    """The shapes model without a prompt, from part of the way up."""

    def __init__(self, task: Task):
        self.task = task
        self.model, clip, self.vae = stock.load()
        self.text, self.vision = stock.load_clip_pair()
        self.prompt = encode(clip, "")
        self.sigmas = SteerSDEditSigmas.execute(self.model, "normal", STEPS, task.strength)[0]

    def inverted(self, scenes: list[Scene]) -> tuple:
        """(latent, noise, inversion)"""
        guider = host_guider(self.model, self.prompt, self.prompt, 1.0)
        latent = {"samples": self.vae.encode(pictures_of(scenes))}
        return SteerDDIMInversion.execute(guider, self.sigmas, latent, REFINE, 1e-4, False).args

    def redrawn(self, inverted: tuple, lora: dict | None = None, strength: float = 1.0) -> Pictures:
        latent, noise, _ = inverted
        model = self.model
        if lora is not None:
            model = comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]
        guider, euler = host_guider(model, self.prompt, self.prompt, 1.0), comfy.samplers.sampler_object("euler")
        latents = sample(guider, euler, self.sigmas, noise.generate_noise(latent), latent["samples"])
        return self.vae.decode(latents).clamp(0, 1)

    def fitted(self, scenes: list[Scene]) -> tuple[dict, list[float], int]:
        """The LoRA, its losses and the number of updates."""
        texts = TEXT.format(SOURCE), TEXT.format(self.task.target)
        loss = SteerCLIPDirectionLoss.execute(
            self.vision, self.vae, self.text, pictures_of(scenes), *texts, CUTOUTS, SMALLEST
        )[0]
        inversion = self.inverted(scenes)[2]
        output = SteerFitLoRA.execute(
            self.model, self.prompt, loss, inversion, RANK, RATE, ITERATIONS, self.task.keep, 1.0, 0
        ).args
        return output[0], output[1]["loss"], output[2]


def judged(picture: np.ndarray, scene: Scene, target: str) -> dict[str, float]:
    """What the reader finds of the asked and of what was to stay."""
    truth, (wanted,) = render(scene), scene["objs"]
    got, place = read_image(picture), object_mask(truth)
    one = got["objs"][0] if got["objs"] else {"color": None, "shape": None}
    return {
        "colour": one["color"] == target,
        "old colour": one["color"] == SOURCE,
        "shape": one["shape"] == wanted["shape"],
        "one object": len(got["objs"]) == 1,
        "background": got["bg"] == scene["bg"],
        "IoU": iou(object_mask(picture), place),
        "dB": psnr(picture, truth, ~grown(place, MARGIN)),
    }


def row(name: str, pictures: Pictures, scenes: list[Scene], target: str) -> dict[str, str]:
    values = [judged(to_bytes(picture), scene, target) for picture, scene in zip(pictures, scenes, strict=True)]
    means = {key: float(np.mean([value[key] for value in values])) for key in values[0]}
    all_right = [value["colour"] and value["shape"] and value["one object"] and value["background"] for value in values]
    shares = {key: f"{means[key]:.0%}" for key in ("colour", "old colour", "shape", "one object", "background")}
    return {"": name, "pictures": str(len(scenes)), "all right": f"{np.mean(all_right):.0%}"} | shares | {
        "place, IoU": f"{means['IoU']:.2f}", "background, dB": f"{means['dB']:.1f}"
    }  # fmt: skip


def run() -> str:
    return (
        f"# A LoRA fitted by CLIP's direction (DiffusionCLIP)\n\n*Fit LoRA* with *CLIP Direction Loss*, from \""
        f'{TEXT.format(SOURCE)}" to the same of another colour, on {FITTED} renders of one {SOURCE} object of any '
        f"shape, at any place, on any background but that colour's; then {FRESH} others, redrawn with the LoRA. No "
        f"prompt; {STEPS} steps, inverted with refine {REFINE}. Rank {RANK}, learning rate {RATE:g}, {ITERATIONS} "
        f"iterations, {CUTOUTS} cutouts of at least {SMALLEST:g}; strength and keep as in the heads, chosen on other "
        "scenes. The reader finds colours and shapes; place: of the object's pixels beside the truth's; background: "
        f"outside of the object and {MARGIN} pixels about it, against the render.\n\n"
        + "\n\n".join(map(section, TASKS))
    )


def section(task: Task) -> str:
    model = Model(task)
    seen, fresh = scenes_of(SEED, FITTED, task.target), scenes_of(FRESH_SEED, FRESH, task.target)
    started, spent = time.monotonic(), time.process_time()
    lora, losses, updates = model.fitted(seen)
    minutes, spent = (time.monotonic() - started) / 60, (time.process_time() - spent) / 60
    inverted = model.inverted(fresh)
    rows = [row("fresh, without the LoRA", model.redrawn(inverted), fresh, task.target)]
    rows += [row(f"fresh, LoRA at {s:g}", model.redrawn(inverted, lora, s), fresh, task.target) for s in STRENGTHS]
    rows += [row("those it was fitted on", model.redrawn(model.inverted(seen), lora), seen, task.target)]
    curve = ", ".join(f"{np.mean(losses[first : first + FITTED]):.3g}" for first in range(0, len(losses), FITTED))
    size = sum(weight.numel() for weight in lora.values()) * 4 / 2**20
    return (
        f"## {SOURCE.capitalize()} to {task.target}: strength {task.strength:g}, keep {task.keep:g}\n\n"
        f"{markdown_table(rows)}\n{updates} updates took {spent:.1f} minutes of one thread ({minutes:.1f} on the "
        "clock, beside other work), the inversion of what it was fitted on included; the process held "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB at most, the LoRA takes {size:.1f} MiB. "
        f"Loss and distance, the mean of each iteration: {curve}."
    )
