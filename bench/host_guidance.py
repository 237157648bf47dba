"""What ComfyUI's own guidance and a second stage at twice the size give here, under our guider and sampler."""

import random
from importlib import import_module

import nodes
import numpy as np
import torch
from PIL import Image

from ..lab.comfy.runs import encode_texts, of_host, run_seeded, sigmas_of
from ..lab.models import stock
from ..lab.world.data import BACKGROUNDS, COLORS, SIZE, caption, sample_scene
from ..lab.world.metrics import markdown_table
from ..lab.world.reader import read_image, score
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.guidance import SteerCFGGuider
from ..nodes.sdedit import SteerSDEditSigmas
from .turns import to_bytes

COUNT, STEPS, SEED = 24, 12, 5
METHODS = {  # by cfg: name, and the host's module, node and inputs
    1.0: {
        "PAG, scale 1": ("nodes_pag", "PerturbedAttentionGuidance", 1.0),
        "PAG, scale 3, as in `perturbed_attention`": ("nodes_pag", "PerturbedAttentionGuidance", 3.0),
        "SAG": ("nodes_sag", "SelfAttentionGuidance", 0.5, 2.0),
        "NAG": ("nodes_nag", "NAGuidance", 5.0, 0.5, 1.5),
    },
    5.0: {
        "FreeU V2": ("nodes_freelunch", "FreeU_V2", 1.3, 1.4, 0.9, 0.2),
        "FreSca": ("nodes_fresca", "FreSca", 1.0, 1.25, 20),
    },
    15.0: {
        "RescaleCFG, as in `rescale_cfg`": ("nodes_model_advanced", "RescaleCFG", 0.7),
        "TCFG": ("nodes_tcfg", "TCFG"),
        "CFGNorm": ("nodes_cfg", "CFGNorm", 1.0),
        "APG, eta 0, norm 5": ("nodes_apg", "APG", 0.0, 5.0, 0.0),
        "CFG-Zero*": ("nodes_cfg", "CFGZeroStar"),
        "Mahiro": ("nodes_mahiro", "Mahiro"),
    },
}
PAIRS, STRENGTHS = 16, (0.1, 0.2, 0.3, 0.5)  # of the second stage


def run() -> str:
    world, rows = World(COUNT), []
    for cfg, methods in METHODS.items():
        rows.append(row(f"{cfg:g}", "none", world.pictures(world.drawn(world.model, cfg)), world.texts))
        for name, (module, node, *inputs) in methods.items():
            patched = of_host(getattr(import_module(f"comfy_extras.{module}"), node), world.model, *inputs)
            rows.append(row(f"{cfg:g}", name, world.pictures(world.drawn(patched, cfg)), world.texts))
    return (
        f"# ComfyUI's own guidance under CFG Guider and DDIM Sampler\n\n{COUNT} captions of two objects, {STEPS} "
        "steps, an empty negative, the same noise in each row; the node's defaults where none are named. Right: the "
        "reader finds all that the caption says. Colour: how far, in RGB, objects and background are from the colour "
        "that they are nearest to, as a mean. At this number of captions 8% are two pictures.\n\n"
        f"{markdown_table(rows)}\n"
        "PAG helps where there is no other guidance. Where high guidance burns the colours, RescaleCFG and TCFG bring "
        "them back and are right more often; none is better there than plain guidance at cfg 5.\n\n"
        f"## Two stages: drawn at {SIZE} pixels, enlarged, redrawn at {2 * SIZE} (`two_stage`)\n\n"
        f"The first {PAIRS} captions, cfg 5, enlarged bicubically as pictures or as latents, 8 steps from the strength "
        f"down. The reader sees the pictures at {SIZE} pixels. Shape: IoU of the objects with the shapes that they are "
        "nearest to, at full size.\n\n"
        f"{markdown_table(two_stages(World(PAIRS)))}\n"
        "A low strength keeps the picture that was drawn small; drawn large at once, things come several times. "
        "Redrawn, the shapes are no truer than enlarged as a picture: this model has no detail to add. Enlarged as a "
        "latent, the picture needs the second stage."
    )


class World:
    """The captions, and pictures of them."""

    def __init__(self, count: int):
        rng = random.Random(77)
        self.texts = [caption(sample_scene(rng, two=True)) for _ in range(count)]
        self.model, clip, self.vae = stock.load()
        self.conds = encode_texts(clip, self.texts), encode_texts(clip, [""] * count)

    def drawn(self, model, cfg: float, sigmas=None, latent=None):
        """Latents of the captions, from noise or from a latent at the first of the sigmas."""
        guider = SteerCFGGuider.execute(model, *self.conds, cfg, 0.0, 1.0, 1.0)[0]
        latent = torch.zeros(len(self.texts), 4, SIZE // 8, SIZE // 8) if latent is None else latent
        sigmas = sigmas_of(model, STEPS) if sigmas is None else sigmas
        return run_seeded(guider, SteerDDIMSampler.execute(0.0)[0], sigmas, latent, seed=SEED)

    def pictures(self, latent) -> list[np.ndarray]:
        return [to_bytes(picture) for picture in self.vae.decode(latent)]


def two_stages(world: World) -> list[dict]:
    small = world.drawn(world.model, 5.0)
    size = "bicubic", 2 * SIZE, 2 * SIZE, "disabled"
    as_latent = nodes.LatentUpscale().upscale({"samples": small}, *size)[0]["samples"]
    pictures = nodes.ImageScale().upscale(world.vae.decode(small), *size)[0]
    as_picture = world.vae.encode(pictures.clamp(0.0, 1.0))
    made = {"small": small, "enlarged as a latent": as_latent, "enlarged as a picture": as_picture}
    for name, large, strengths in (("picture", as_picture, STRENGTHS), ("latent", as_latent, STRENGTHS[1:2])):
        for strength in strengths:
            sigmas = SteerSDEditSigmas.execute(world.model, "normal", 8, strength)[0]
            made[f"from the {name}, strength {strength:g}"] = world.drawn(world.model, 5.0, sigmas, large)
    made["drawn large at once"] = world.drawn(world.model, 5.0, latent=torch.zeros_like(as_latent))
    rows = []
    for name, latent in made.items():
        pictures = world.pictures(latent)
        seen = [np.asarray(Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BOX)) for each in pictures]
        shape = np.mean([score(*pair)["iou"] for pair in zip(pictures, world.texts, strict=True)])
        rows.append({"picture": name, **row("", "", seen, world.texts, "right", "colour"), "shape": f"{shape:.2f}"})
    return rows


def row(cfg: str, name: str, pictures: list[np.ndarray], texts: list[str], *only: str) -> dict:
    right = np.mean([score(*pair)["all"] for pair in zip(pictures, texts, strict=True)])
    figures = {"cfg": cfg, "ComfyUI's node": name, "right": f"{right:.0%}",
               "colour": f"{np.mean([colour_error(each) for each in pictures]):.1f}"}  # fmt: skip
    return {key: value for key, value in figures.items() if not only or key in only}


def colour_error(picture: np.ndarray) -> float:
    seen = read_image(picture)
    pairs = [(each["rgb"], COLORS[each["color"]]) for each in seen["objs"]]
    pairs.append((seen["bg_rgb"], BACKGROUNDS[seen["bg"]]))
    return float(np.mean([np.linalg.norm(np.subtract(*pair)) for pair in pairs]))
