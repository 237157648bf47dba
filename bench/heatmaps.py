"""Heatmaps of words against where things are in generated pictures of one and two objects."""

import random
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import comfy.samplers
import numpy as np
import torch
from PIL import Image

from ..attention.attention_maps import Recording, heat
from ..attention.layers import DepthPolicy, Site
from ..lab.comfy.runs import Noise, encode_texts, host_guider, noise_of, sigmas_of
from ..lab.models import stock
from ..lab.world.data import SIZE, caption, sample_scene
from ..lab.world.metrics import attributes, markdown_table, object_mask
from ..lab.world.reader import distance, read_image
from ..nodes.attention_maps import SteerAttentionHeatmap, SteerCaptureAttention
from ..nodes.host.attention.families import family_of, layers_of
from ..nodes.host.text import tokenized
from .runner import FOLDER
from .turns import to_bytes

SCENES, BATCH, STEPS, CFG = 64, 16, 20, 5.0
JOINT_CFG = 3.0
THRESHOLDS = np.arange(0.02, 1.0, 0.02)
WORDS = {"colour": "{color}", "shape": "{shape}", "both": "{color} {shape}"}
SHEET = 4  # scenes of each kind


def run() -> str:
    model, clip, vae = stock.load()
    singles, pairs = (generated(model, clip, vae, two) for two in (False, True))
    save_sheet(model, clip, vae)
    return (
        f"# Heatmaps\n\nWhat `SteerAttentionHeatmap` shows, against the things in the generated pictures themselves "
        f"(what is far from the background's colour). Euler, {STEPS} steps, cfg {CFG:g}; maps averaged over the whole "
        f"run.\n\n## One object\n\n{SCENES} captions such as `a red circle on a blue background`. IoU of the object "
        "with where the heat of its words is above a threshold: the best one for all pictures, 0.5, and the best for "
        f"each picture. The shapes model attends at 16x16 and 8x8; the node uses both.\n\n"
        f"{markdown_table(on_one_object(clip, singles))}\n## Two objects\n\n{on_two_objects(clip, pairs)}\n"
        f"![sheet](heatmaps.png)\n\n{on_the_joint_model()}"
    )


def generated(model, clip, vae, two: bool, cfg: float = CFG) -> list[tuple[dict, np.ndarray, Recording]]:
    """(scene asked for, picture, its attention) of each scene."""
    found = []
    for first in range(0, SCENES, BATCH):
        scenes = [sample_scene(random.Random(first + index), two) for index in range(BATCH)]
        pixels, recording = captured(model, clip, vae, [caption(scene) for scene in scenes], first, cfg)
        found += [
            (scene, to_bytes(picture), replace(recording, maps={g: m[i : i + 1] for g, m in recording.maps.items()}))
            for i, (scene, picture) in enumerate(zip(scenes, pixels, strict=True))
        ]
    return found


def captured(model, clip, vae, texts: list[str], seed: int, cfg: float = CFG):
    """Pictures, one for each text, and their attention."""
    guider = host_guider(model, encode_texts(clip, texts), encode_texts(clip, [""]), cfg)
    sigmas = sigmas_of(model, STEPS)
    euler, empty = comfy.samplers.sampler_object("euler"), {"samples": torch.zeros(len(texts), 4, 16, 16)}
    noise = Noise(noise_of(empty["samples"].shape, seed), seed)
    latent, recording = SteerCaptureAttention.execute(noise, guider, euler, sigmas, empty, 0.0, 0.0).args
    return vae.decode(latent["samples"]), recording


def heat_of(clip, scene: dict, recording: Recording, phrase: str) -> np.ndarray:
    return heat(recording, tokenized(clip, caption(scene)).positions(phrase), SIZE, SIZE)[0].numpy()


def at_resolution(recording: Recording, side: int | None) -> Recording:
    return recording if side is None else replace(recording, maps={(side, side): recording.maps[side, side]})


def on_one_object(clip, items) -> list[dict]:
    objects = np.stack([object_mask(picture) for _, picture, _ in items])
    rows = []
    for side in (None, 16, 8):
        for name, pattern in WORDS.items():
            heats = np.stack([
                heat_of(clip, scene, at_resolution(recording, side), pattern.format(**scene["objs"][0]))
                for scene, _, recording in items
            ])  # fmt: skip
            rows.append({"maps": "all" if side is None else f"{side}x{side}", "words": name, **judged(heats, objects)})
    return rows


def judged(heats: np.ndarray, objects: np.ndarray) -> dict:
    ious = np.array([
        (objects & (heats > t)).sum((1, 2)) / (objects | (heats > t)).sum((1, 2)) for t in THRESHOLDS
    ])  # (thresholds, pictures)  # fmt: skip
    best = ious.mean(1).argmax()
    half = np.abs(THRESHOLDS - 0.5).argmin()
    return {
        "best threshold": f"{THRESHOLDS[best]:.2f}",
        "IoU": f"{ious[best].mean():.2f}",
        "IoU at 0.5": f"{ious[half].mean():.2f}",
        "IoU, best for each": f"{ious.max(0).mean():.2f}",
    }


def on_two_objects(clip, items) -> str:
    right = [item for item in items if attributes(item[1], caption(item[0]))["all"] == 1.0]
    alike = sum(len({obj["shape"] for obj in scene["objs"]}) == 1 for scene, _, _ in right)
    rows = []
    for name, pattern in WORDS.items():
        marks = hotter(clip, right, pattern)
        rows.append({"words": name, "objects": len(marks), "right one hotter": f"{100 * np.mean(marks):.1f}%"})
    return (
        f"The {len(right)} of {SCENES} pictures that show both objects as asked: in how many of their objects the "
        "object's own word is hotter (mean heat) than the other object's. For shape words without the "
        f"{alike} pictures of two equal shapes.\n\n{markdown_table(rows)}"
    )


def hotter(clip, right, pattern: str) -> list[bool]:
    """Of each object of these pictures, whether its own word is hotter in it than the other object's."""
    marks = []
    for scene, picture, recording in right:
        phrases = [pattern.format(**obj) for obj in scene["objs"]]
        if len(set(phrases)) == 2:  # the heat of a word that is there twice is one
            heats = [heat_of(clip, scene, recording, phrase) for phrase in phrases]
            places = object_masks(picture, scene)
            marks += [heats[i][places[i]].mean() > heats[1 - i][places[i]].mean() for i in (0, 1)]
    return marks


def object_masks(picture: np.ndarray, scene: dict) -> list[np.ndarray]:
    """The places of the two objects of a right picture, told apart by colour."""
    read = {obj["color"]: obj["rgb"] for obj in read_image(picture)["objs"]}
    far = [distance(picture, read[obj["color"]]) for obj in scene["objs"]]
    return [object_mask(picture) & (far[i] < far[1 - i]) for i in (0, 1)]


def on_the_joint_model() -> str:
    """The same for a joint transformer, by the layers and the steps whose maps are averaged."""
    model, clip, vae = stock.load_flux()
    network = model.model.diffusion_model
    names, levels = layers_of(network, family_of(network)), sigmas_of(model, STEPS)
    first, last = float(levels[STEPS // 3]), float(levels[2 * STEPS // 3])
    chosen: dict[str, Callable[[Site], bool]] = {
        "all": lambda site: True,
        "all, first third of the steps": lambda site: site.sigma > first,
        "all, last third of the steps": lambda site: site.sigma <= last,
        "from 0.3 to 0.6 of the depth": lambda site: site.layer in names[1:4],
        **{name: lambda site, name=name: site.layer == name for name in names},
    }
    rows = []
    for name, wanted in chosen.items():
        with mock.patch.object(DepthPolicy, "heats", lambda _, site, wanted=wanted: wanted(site)):
            singles, pairs = (generated(model, clip, vae, two, JOINT_CFG) for two in (False, True))
        rows.append({"layers": name, **on_words(clip, singles), **on_pairs(clip, pairs)})
    return (
        "## The joint model\n\nThe same on the transformer of Flux's structure: 6 layers, 8x8 places, cfg "
        f"{JOINT_CFG:g}. Colour and shape together, by the layers and steps whose maps are averaged; the node takes "
        f"all.\n\n{markdown_table(rows)}"
    )


def on_words(clip, items) -> dict:
    """Of single objects, with colour and shape."""
    heats = [heat_of(clip, scene, seen, WORDS["both"].format(**scene["objs"][0])) for scene, _, seen in items]
    return judged(np.stack(heats), np.stack([object_mask(picture) for _, picture, _ in items]))


def on_pairs(clip, items) -> dict:
    """Of pairs that are as asked: in how many of the objects their own words are hotter."""
    marks = hotter(clip, [item for item in items if attributes(item[1], caption(item[0]))["all"] == 1.0], WORDS["both"])
    return {"objects of two": len(marks), "right one hotter": f"{100 * np.mean(marks):.1f}%"}


def save_sheet(model, clip, vae) -> None:
    """What the node makes of some scenes, one below the other."""
    rows = []
    for index in range(2 * SHEET):
        scene = sample_scene(random.Random(100 + index), two=index % 2 == 1)
        pixels, recording = captured(model, clip, vae, [caption(scene)], index)
        words = ", ".join(f"{obj['color']}, {obj['shape']}" for obj in scene["objs"])
        if index % 2 == 0:
            words += f", {scene['bg']}, {scene['objs'][0]['color']} {scene['objs'][0]['shape']}"
        rows.append(SteerAttentionHeatmap.execute(recording, clip, caption(scene), words, pixels).args[0][0])
    Image.fromarray(to_bytes(torch.cat(rows))).save(FOLDER / "heatmaps.png")
