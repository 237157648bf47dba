"""Measured pictures on the shapes: colourised, enlarged, sharpened, cleaned and uncropped, against the truth."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lab.comfy.runs import counted, encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.world.data import SIZE, caption, render, sample_scene
from ..lab.world.inputs import compressed
from ..lab.world.metrics import attributes, markdown_table, mse
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.langevin import SteerLangevinSampler
from ..nodes.measurement import SteerMeasurementLoss
from ..nodes.sdedit import SteerSDEditSigmas
from ..pictures.pad_image import padded
from ..samplers.jpeg import JPEG
from ..samplers.measurement import Blur, Crop, Gray, Operator, Resize, squared_gaps
from .runner import FOLDER
from .turns import to_bytes

SCENES, BATCH, SEED = 64, 8, 71000  # settings were chosen on other scenes
CHOSEN, CHOSEN_SEED = 8, 72000  # scenes for SDEdit's strength
SOLVED, JOINT = 8, 16  # scenes of what is slow
STEPS, CFG, NOISE, ITERATIONS = 40, 3.0, 0.05, 5
STRENGTHS = 0.4, 0.6, 0.8
PART = Crop(24, 24, 80, 80)
SHEET, SHOWN = 4, ("SDEdit", "Langevin", "solved", "through")
TASKS: dict[str, tuple[Operator, ...]] = {
    "gray": (Gray(),),
    "a quarter of the size": (Resize(SIZE // 4, SIZE // 4),),
    "blurred, std 3": (Blur(3.0),),
    "JPEG of quality 10": (JPEG(10),),
    "a crop": (PART,),
}
Pictures = Tensor
"""(batch, height, width, 3), 0 to 1"""


@dataclass(frozen=True)
class Problem:
    """Scenes of which something was measured."""

    truth: Pictures
    captions: list[str]
    operators: tuple[Operator, ...]
    measured: Pictures
    seed: int

    @property
    def enlarged(self) -> Pictures:
        """What was measured, as a picture of the whole size: where SDEdit and inpainting start."""
        if isinstance(self.operators[0], Crop):
            right, bottom = SIZE - PART.x - PART.width, SIZE - PART.y - PART.height
            return padded(self.measured, PART.x, PART.y, right, bottom)[0]
        planes = self.measured.movedim(-1, 1)
        return torch.nn.functional.interpolate(planes, (SIZE, SIZE), mode="bicubic").clamp(0, 1).movedim(1, -1)

    def residual(self, pictures: Pictures) -> list[float]:
        """How far each picture is from what was measured, RMS."""
        target = self.measured.movedim(-1, 1)
        gaps = squared_gaps(self.operators, target, torch.ones_like(target[:, :1]))(pictures.movedim(-1, 1))
        values = target[0].numel() // (3 if isinstance(self.operators[0], Gray) else 1)
        return (gaps / values).sqrt().tolist()


def problem(task: str, seed: int, count: int) -> Problem:
    """The scenes of the seeds from this on, and what was measured of them."""
    scenes = [sample_scene(random.Random(seed + index), two=index % 2 == 1) for index in range(count)]
    truth = torch.stack([torch.from_numpy(render(scene).copy()) for scene in scenes]).float() / 255
    return Problem(truth, [caption(scene) for scene in scenes], TASKS[task], measurement(TASKS[task], truth), seed)


def measurement(operators: tuple[Operator, ...], truth: Pictures) -> Pictures:
    """What the operators make of pictures, as one would have it, in three colours."""
    if isinstance(operators[0], JPEG):
        files = [np.array(compressed(Image.fromarray(to_bytes(picture)))) for picture in truth]
        return torch.from_numpy(np.stack(files)).float() / 255
    planes = truth.movedim(-1, 1)
    for operator in operators:
        planes = operator(planes)
    return planes.expand(-1, 3, -1, -1).movedim(1, -1)


class Methods:
    """The ways to a picture that agrees, on one model: each gives latents for a problem."""

    def __init__(self, model, clip, vae):
        (self.model, self.rows), self.clip, self.vae = counted(model), clip, vae
        self.sampler = SteerDDIMSampler.execute(1.0)[0]
        self.channels = model.model.latent_format.latent_channels

    def guider(self, given: Problem):
        conditionings = encode_texts(self.clip, given.captions), encode_texts(self.clip, [""])
        return host_guider(self.model, *conditionings, CFG)

    def guided(self, given: Problem, through: bool, limit: float, iterations: int = 1, strength: float = 0.0) -> Tensor:
        """From noise alone, or from what was measured at SDEdit's strength."""
        loss = SteerMeasurementLoss.execute(self.vae, given.measured, NOISE, given.operators)[0]
        inner = self.guider(given)
        guider = SteerGradientGuider.execute(inner, loss, 1.0, 0.0, 1.0, through, None, limit, iterations)[0]
        if strength:
            sigmas = SteerSDEditSigmas.execute(self.model, "normal", STEPS, strength)[0]
            return run_seeded(guider, self.sampler, sigmas, self.vae.encode(given.enlarged), seed=given.seed)
        latent = torch.zeros(len(given.truth), self.channels, SIZE // 8, SIZE // 8)
        return run_seeded(guider, self.sampler, sigmas_of(self.model, STEPS), latent, seed=given.seed)

    def through_model(self, given: Problem) -> Tensor:
        return self.guided(given, True, 1.0)

    def from_picture(self, given: Problem, strength: float) -> Tensor:
        return self.guided(given, True, 1.0, strength=strength)

    def one_gradient(self, given: Problem) -> Tensor:
        return self.guided(given, False, 3.0)

    def solved(self, given: Problem) -> Tensor:
        return self.guided(given, False, 1.0, ITERATIONS)

    def sdedit(self, given: Problem, strength: float) -> Tensor:
        sigmas = SteerSDEditSigmas.execute(self.model, "normal", STEPS, strength)[0]
        sampler = comfy.samplers.sampler_object("euler")
        return run_seeded(self.guider(given), sampler, sigmas, self.vae.encode(given.enlarged), seed=given.seed)

    def inpainted(self, given: Problem) -> Tensor:
        mask = torch.ones(1, 1, SIZE // 8, SIZE // 8)
        rows, columns = (slice(at // 8, (at + side) // 8) for at, side in
                         ((PART.y, PART.height), (PART.x, PART.width)))  # fmt: skip
        mask[..., rows, columns] = 0.0
        sampler, latent = SteerLangevinSampler.execute(5, 0.8)[0], self.vae.encode(given.enlarged)
        return run_seeded(self.guider(given), sampler, sigmas_of(self.model, STEPS), latent, mask, given.seed)

    def judged(self, task: str, way: Callable, scenes: int = SCENES, seed: int = SEED) -> list[dict]:
        """What came of each scene, and what it took."""
        out: list[dict] = []
        for first in range(0, scenes, BATCH):
            given = problem(task, seed + first, min(BATCH, scenes - first))
            started, calls = time.process_time(), len(self.rows)
            pictures = self.vae.decode(way(given)).clamp(0, 1)
            spent = {"rows": sum(self.rows[calls:]), "seconds": time.process_time() - started}
            spent = {name: value / len(given.truth) for name, value in spent.items()}
            judged = zip(pictures, given.truth, given.captions, given.residual(pictures), strict=True)
            out += [
                attributes(to_bytes(picture), text)
                | {"error": mse(picture, truth), "residual": residual, "picture": to_bytes(picture)}
                | spent
                for picture, truth, text, residual in judged
            ]
        return out


def run() -> str:
    methods, cells = Methods(*stock.load()), []
    sections = [section(methods, task, ways(methods, task), cells) for task in TASKS]
    contact_sheet(cells, FOLDER / "measurement.png", "Pictures that agree with what was measured", SHEET)
    joint = Methods(*stock.load_flux())
    trained = [section(joint, task, {"through the model": (joint.through_model, JOINT)}, None) for task in TASKS]
    return (
        f"# Measured pictures\n\n{SCENES} scenes of one object and of two, in turn, captions as prompts, {STEPS} steps "
        f"of DDIM with eta 1, cfg {CFG:g}; noise {NOISE:g}, scale 1. All right: the reader finds all that the caption "
        "says. PSNR: of the mean error against the truth. Residual: from what was measured, RMS, pixels 0 to 1 (JPEG: "
        "outside of its cells); the truth's own after the VAE in brackets. Through the model: `through_model` on, "
        "`max_change` 1. One gradient: `through_model` off, `max_change` 3. Solved: `through_model` off, "
        f"{ITERATIONS} iterations, `max_change` 1. SDEdit from what was measured (made large; round a crop as Pad "
        f"Image pads it), of strengths {', '.join(f'{s:g}' for s in STRENGTHS)} the one with most right on {CHOSEN} "
        f"other scenes. From the picture: through the model, from where SDEdit starts. Rows: of the model; seconds of "
        f"one thread, a picture. Batches of {BATCH}.\n\n"
        + "\n".join(sections)
        + f"\n![sheet](measurement.png)\n\n# On the joint transformer\n\n{JOINT} scenes.\n\n"
        + "\n".join(trained)
    )


def ways(methods: Methods, task: str) -> dict[str, tuple[Callable, int]]:
    """The methods that apply to the task, with how many scenes each has."""
    strength = best_strength(methods, task)
    out = {
        f"SDEdit, strength {strength:g}": (lambda given: methods.sdedit(given, strength), SCENES),
        "one gradient": (methods.one_gradient, SCENES),
        "solved": (methods.solved, SOLVED),
        "through the model": (methods.through_model, SCENES),
        f"from the picture, strength {strength:g}": (lambda given: methods.from_picture(given, strength), SCENES),
    }
    return {"Langevin inpainting": (methods.inpainted, SCENES), **out} if task == "a crop" else out


def best_strength(methods: Methods, task: str) -> float:
    def quality(strength: float) -> tuple[float, float]:
        values = methods.judged(task, lambda given: methods.sdedit(given, strength), CHOSEN, CHOSEN_SEED)
        return np.mean([value["all"] for value in values]), -np.mean([value["error"] for value in values])

    return max(STRENGTHS, key=quality)


def section(methods: Methods, task: str, tried: dict, cells: list | None) -> str:
    """The table of one task; `cells` gets the pictures of the first scenes."""
    given, rows = problem(task, SEED, BATCH), []
    round_trip = np.mean(given.residual(methods.vae.decode(methods.vae.encode(given.truth)).clamp(0, 1)))
    if cells is not None:
        cells += [
            (Image.fromarray(to_bytes(picture)), f"{task}: what was measured") for picture in given.enlarged[:SHEET]
        ]
    for name, (way, scenes) in tried.items():
        values = methods.judged(task, way, scenes)
        rows.append(row(name, values))
        print(task, rows[-1], flush=True)
        if cells is not None and name.startswith(SHOWN):
            cells += [(Image.fromarray(value["picture"]), f"{task}: {name}") for value in values[:SHEET]]
    return f"## {task[0].upper()}{task[1:]} ({round_trip:.3f})\n\n{markdown_table(rows)}"


def row(name: str, values: list[dict]) -> dict:
    def mean(key: str) -> float:
        return float(np.mean([value[key] for value in values]))

    return {
        "": name,
        "scenes": str(len(values)),
        "all right": f"{mean('all'):.0%}",
        "colours": f"{mean('color'):.0%}",
        "background": f"{mean('bg'):.0%}",
        "PSNR": f"{-10 * np.log10(mean('error')):.1f} dB",
        "residual": f"{mean('residual'):.3f}",
        "rows": f"{mean('rows'):.0f}",
        "seconds": f"{mean('seconds'):.1f}",
    }
