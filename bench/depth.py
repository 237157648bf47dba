"""Pictures drawn with the depth of another one: is the object where the depth says, as large, and right?"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
import torch
from PIL import Image
from torch import Tensor

from ..lab.comfy.runs import counted, encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.world.data import BACKGROUNDS, COLORS, SHAPES, SIZE, Scene, caption, render, sample_scene
from ..lab.world.metrics import aggregate, attributes, iou, markdown_table, object_mask
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.depth import SteerDepthLoss
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.host import depth as host_depth
from ..nodes.sdedit import SteerSDEditSigmas
from ..samplers.depth import depth_distance
from .runner import FOLDER
from .turns import to_bytes

SCENES, OTHER, BATCH, SEED = 16, 8, 8, 91000  # OTHER: of what is beside the main question
CHOSEN, CHOSEN_SEED = 8, 92000  # scenes for the settings
STEPS, CFG, RESOLUTION, SCALE = 20, 3.0, 140, 1000.0
STRENGTHS = 0.6, 0.8, 0.9
FIGURES = "place", "there", "right", "both", "loss", "rows", "seconds"


@dataclass(frozen=True)
class Asked:
    """Pictures whose depth is given, and what is to be drawn with it."""

    given: list[Scene]
    captions: list[str]
    seed: int

    @property
    def pictures(self) -> Tensor:
        """(batch, height, width, 3), 0 to 1"""
        return torch.stack([torch.from_numpy(render(scene).copy()) for scene in self.given]).float() / 255


def asked(seed: int, count: int, other_shape: bool) -> Asked:
    """Scenes of one object, and captions of another colour on another ground, of the same shape or of another."""
    given, captions = [], []
    for index in range(seed, seed + count):
        rng = random.Random(index)
        scene = sample_scene(rng, two=False)
        (obj,) = scene["objs"]
        bg = rng.choice([name for name in BACKGROUNDS if name != scene["bg"]])
        color = rng.choice([name for name in COLORS if name not in (bg, obj["color"])])
        shape = rng.choice([name for name in SHAPES if name != obj["shape"]]) if other_shape else obj["shape"]
        given.append(scene)
        captions.append(caption({"bg": bg, "rel": None, "objs": [{"color": color, "shape": shape}]}))
    return Asked(given, captions, seed)


class Methods:
    """The ways to a picture with a given depth: each gives latents."""

    def __init__(self):
        model, self.clip, self.vae = stock.load()
        self.model, self.rows = counted(model)
        self.depth = stock.load_depth()

    def guider(self, wanted: Asked):
        return host_guider(self.model, encode_texts(self.clip, wanted.captions), encode_texts(self.clip, [""]), CFG)

    def plain(self, wanted: Asked, guider=None) -> Tensor:
        latent = torch.zeros(len(wanted.given), 4, SIZE // 8, SIZE // 8)
        sampler = SteerDDIMSampler.execute(1.0)[0]
        return run_seeded(
            guider or self.guider(wanted), sampler, sigmas_of(self.model, STEPS), latent, seed=wanted.seed
        )

    def guided(self, wanted: Asked, scale: float, through: bool = True) -> Tensor:
        loss = SteerDepthLoss.execute(self.depth, self.vae, wanted.pictures, RESOLUTION)[0]
        return self.plain(wanted, SteerGradientGuider.execute(self.guider(wanted), loss, scale, 0.0, 1.0, through)[0])

    def sdedit(self, wanted: Asked, strength: float) -> Tensor:
        sigmas = SteerSDEditSigmas.execute(self.model, "normal", STEPS, strength)[0]
        sampler = comfy.samplers.sampler_object("euler")
        return run_seeded(self.guider(wanted), sampler, sigmas, self.vae.encode(wanted.pictures), seed=wanted.seed)

    def distances(self, pictures: Tensor, wanted: Asked) -> list[float]:
        """The loss: by the network, between the pictures and those that the depth is of."""
        size = (RESOLUTION, RESOLUTION)
        (ours, valid), (theirs, known) = (
            host_depth.disparity(self.depth, lambda call: call(), each.movedim(-1, 1), size)
            for each in (pictures, wanted.pictures)
        )
        return depth_distance(ours, theirs, valid & known).tolist()

    def judged(self, way: Callable, other_shape: bool, scenes: int = SCENES, seed: int = SEED) -> list[dict]:
        """What came of each scene, and what it took."""
        out: list[dict] = []
        for first in range(0, scenes, BATCH):
            wanted = asked(seed + first, min(BATCH, scenes - first), other_shape)
            started, calls = time.process_time(), len(self.rows)
            latents = way(wanted)
            spent = {"rows": sum(self.rows[calls:]), "seconds": time.process_time() - started}
            spent = {name: value / len(wanted.given) for name, value in spent.items()}
            pictures = self.vae.decode(latents).clamp(0, 1)
            shown = zip(
                to_bytes(pictures), wanted.given, wanted.captions, self.distances(pictures, wanted), strict=True
            )
            out += [
                {"picture": picture, "given": scene, "caption": text, **figures(picture, scene, text, loss), **spent}
                for picture, scene, text, loss in shown
            ]
        return out


def figures(picture, given: Scene, text: str, loss: float) -> dict:
    """Of one picture, as numbers."""
    place = iou(object_mask(picture), render(given, only_mask=True) > 0.5)
    right = attributes(picture, text)["all"]
    there = float(place > 0.5)
    return {"place": place, "there": there, "right": right, "both": there * right, "loss": loss}


def run() -> str:
    methods = Methods()
    cells = [(Image.fromarray(render(scene)), "what the depth is of") for scene in asked(SEED, BATCH, False).given]
    sections = [section(methods, other_shape, cells) for other_shape in (False, True)]
    contact_sheet(cells, FOLDER / "depth.png", "Drawn with the depth of another picture", BATCH)
    return (
        "# Drawn with the depth of another picture\n\nScenes of one object give the depth, by the lab's network; "
        "captions of another colour on another background are drawn with it, of the same shape and of another. "
        f"{STEPS} steps of DDIM with eta 1, cfg {CFG:g}, the same seeds for all. Place: IoU of what is not background "
        "with the given object; there: the share above a half. Right: the reader finds all that the caption says. "
        "Both: there and right. Loss: the depth loss by the network, of the finished picture. Through the model: "
        f"`through_model` on, scale {SCALE:g}, else as by default. SDEdit: Euler, from the picture that the depth is "
        f"of; of strengths {', '.join(f'{s:g}' for s in STRENGTHS)} the one with most of both on {CHOSEN} other "
        f"scenes. Rows: of the model; seconds of one thread, a picture. Batches of {BATCH}.\n\n"
        + "\n".join(sections)
        + "\n![sheet](depth.png)"
    )


def ways(methods: Methods, other_shape: bool) -> dict[str, tuple[Callable, int]]:
    """The methods, with how many scenes each has."""
    strength, scenes = best_strength(methods, other_shape), OTHER if other_shape else SCENES
    out = {
        "no loss": (methods.plain, scenes),
        f"SDEdit, strength {strength:g}": (lambda wanted: methods.sdedit(wanted, strength), scenes),
        "through the model": (lambda wanted: methods.guided(wanted, SCALE), scenes),
    }
    if not other_shape:
        out["one gradient"] = lambda wanted: methods.guided(wanted, SCALE, through=False), OTHER
    return out


def best_strength(methods: Methods, other_shape: bool) -> float:
    def both(strength: float) -> float:
        values = methods.judged(lambda wanted: methods.sdedit(wanted, strength), other_shape, CHOSEN, CHOSEN_SEED)
        return aggregate({"both": value["both"]} for value in values)["both"]

    return max(STRENGTHS, key=both)


def section(methods: Methods, other_shape: bool, cells: list) -> str:
    """The table of one kind of captions; `cells` gets the pictures of the first scenes."""
    kind, rows = "Another shape" if other_shape else "The same shape", []
    for name, (way, scenes) in ways(methods, other_shape).items():
        values = methods.judged(way, other_shape, scenes)
        rows.append(row(name, values))
        print(kind, rows[-1], flush=True)
        cells += [(Image.fromarray(value["picture"]), f"{name}: {value['caption']}") for value in values[:BATCH]]
    return f"## {kind}\n\n{markdown_table(rows)}"


def row(name: str, values: list[dict]) -> dict:
    mean = aggregate({key: value[key] for key in FIGURES} for value in values)
    return {
        "": name,
        "scenes": str(len(values)),
        **{key: f"{mean[key]:.2f}" for key in ("place", "loss")},
        **{key: f"{mean[key]:.0%}" for key in ("there", "right", "both")},
        "rows": f"{mean['rows']:.0f}",
        "seconds": f"{mean['seconds']:.1f}",
    }
