"""Objects painted into a place by Paint-with-words: where they land, against plain sampling from the same noise."""

import random

import comfy.samplers
import numpy as np
import torch
from PIL import Image, ImageDraw

from ..lab.comfy.runs import encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.world.data import SIZE, caption, sample_scene
from ..lab.world.metrics import aggregate, markdown_table, object_mask
from ..lab.world.reader import read_image, score
from ..nodes.paint_with_words import SteerPaintWithWords, SteerRegion, SteerRegionsFromSegmentation
from .runner import FOLDER
from .turns import to_bytes

RUNS, STEPS, CFG, JOINT_CFG = 64, 20, 5.0, 3.0
JOINT_WEIGHT = 0.4  # the node's default
SHEET = 8  # runs of each row on the contact sheet
EULER = comfy.samplers.sampler_object("euler")
MAP = ("#ff0000", "#0000ff", "#ffff00")  # the segmentation map's colours: first object, second object, background


def run() -> str:
    sheet = []
    tables = [compared(stock.load(), two, methods, CFG, sheet) for two, methods in ((False, ONE), (True, TWO))]
    contact_sheet(sheet, FOLDER / "layout.png", "Layout: plain, and painted into the outlined places", SHEET)
    return (
        f"# Layout\n\n## One object\n\n{RUNS} one-object captions, and for each a random quarter of the picture that "
        f"the words are painted into; euler, {STEPS} steps, cfg {CFG:g}, the same noise for all. In place: the centre "
        "of the largest object lies in the quarter. Inside: how much of what is not background does (objects may be "
        "larger than a quarter). All right: the reader finds what the caption says, and nothing else.\n\n"
        f"{tables[0]}\n## Two objects, from a segmentation map\n\n{RUNS} captions like `a red circle left of a blue "
        "star on a white background`; a random quarter for each object, on the side that the caption says, the rest "
        "for the background. In place: both are.\n\n"
        f"{tables[1]}\n![sheet](layout.png)\n\n{on_the_joint_model()}"
    )


def on_the_joint_model() -> str:
    """The same for a joint transformer, by weight."""
    tools, sheet = stock.load_flux(), []
    one, two = (compared(tools, *each, JOINT_CFG, sheet) for each in ((False, JOINT_ONE), (True, JOINT_TWO)))
    title = f"Layout on the joint model: plain, and painted into the outlined places at {JOINT_WEIGHT:g}"
    contact_sheet(sheet, FOLDER / "layout_joint.png", title, SHEET)
    return (
        f"## The joint model\n\nThe same on the transformer of Flux's structure, cfg {JOINT_CFG:g}: one object, then "
        f"two from the map.\n\n{one}\n{two}\n![sheet](layout_joint.png)"
    )


def compared(tools, two: bool, methods: list[tuple], cfg: float, sheet: list) -> str:
    """A row for each method; some of its pictures go to the sheet."""
    problems, rows = [problem(index, two) for index in range(RUNS)], []
    for name, paint, weight in methods:
        pictures = [picture_of(*tools, given, paint, weight, cfg) for given in problems]
        pairs = list(zip(problems, pictures, strict=True))
        found = aggregate(judged(*pair) for pair in pairs)
        rows.append({"painted": name, "weight": weight, **{key: f"{found[key]:.0%}" for key in found}})
        if (paint, weight) in SHOWN:
            sheet += [(outlined(*pair), f"{name}: {caption(pair[0]['scene'])}") for pair in pairs[:SHEET]]
    return markdown_table(rows)


def problem(index: int, two: bool) -> dict:
    """A scene to caption, and the quarter of the picture (in reading order) that each object is to be in."""
    rng = random.Random(index)
    scene = sample_scene(rng, two)
    rows, columns = ([rng.randrange(2) for _ in scene["objs"]] for _ in range(2))
    if scene["rel"] == "above":
        rows = [0, 1]
    elif scene["rel"] == "left of":
        columns = [0, 1]
    quarters = [2 * row + column for row, column in zip(rows, columns, strict=True)]
    return {"scene": scene, "quarters": quarters, "seed": index}


def picture_of(model, clip, vae, given: dict, paint, weight, cfg: float) -> np.ndarray:
    text, empty = caption(given["scene"]), encode_texts(clip, [""])
    positive = encode_texts(clip, [text])
    if paint:
        model, positive = SteerPaintWithWords.execute(model, clip, text, paint(given), weight).args
    sigmas = sigmas_of(model, STEPS)
    guider = host_guider(model, positive, empty, cfg)
    latent = run_seeded(guider, EULER, sigmas, torch.zeros(1, 4, 16, 16), seed=given["seed"])
    return to_bytes(vae.decode(latent)[0])


def place(quarter: int) -> np.ndarray:
    """A quarter of the picture, as True and False."""
    mask, half, (row, column) = np.zeros((SIZE, SIZE), bool), SIZE // 2, divmod(quarter, 2)
    mask[row * half :, column * half :][:half, :half] = True
    return mask


def region(mask: np.ndarray, phrase: str, regions=()):
    return SteerRegion.execute(torch.from_numpy(mask).float()[None], phrase, 1.0, regions)[0]


def shape(given: dict):
    return region(place(given["quarters"][0]), given["scene"]["objs"][0]["shape"])


def colour(given: dict):
    return region(place(given["quarters"][0]), given["scene"]["objs"][0]["color"])


def colour_and_shape(given: dict):
    return region(place(given["quarters"][0]), phrases(given)[0])


def with_background(given: dict):
    return region(~place(given["quarters"][0]), phrases(given)[-1], shape(given))


def both_with_background(given: dict):
    return region(~place(given["quarters"][0]), phrases(given)[-1], colour_and_shape(given))


def segmentation(given: dict):
    """Objects and background, through a picture and its legend."""
    colours = torch.tensor([list(bytes.fromhex(name[1:])) for name in MAP]) / 255
    picture = colours[2].repeat(1, SIZE, SIZE, 1)
    for colour, quarter in zip(colours, given["quarters"], strict=False):
        picture[0, torch.from_numpy(place(quarter))] = colour
    legend = "\n".join(f"{name}: {phrase}" for name, phrase in zip(MAP, phrases(given), strict=True))
    return SteerRegionsFromSegmentation.execute(picture, legend)[0]


def phrases(given: dict) -> list[str]:
    scene = given["scene"]
    return [f"{obj['color']} {obj['shape']}" for obj in scene["objs"]] + [f"{scene['bg']} background"]


ONE = [  # what is painted, how, and the weight
    ("nothing", None, ""),
    ("colour", colour, 0.3),
    ("colour and shape", colour_and_shape, 0.3),
    *(("shape", shape, weight) for weight in (0.1, 0.2, 0.3, 0.4, 0.6)),
    ("shape, and background elsewhere", with_background, 0.3),
]
TWO = [("nothing", None, ""), ("objects and background", segmentation, 0.3)]
SHOWN = {
    (None, ""), (with_background, 0.3), (segmentation, 0.3), (colour_and_shape, JOINT_WEIGHT),
    (segmentation, JOINT_WEIGHT),
}  # fmt: skip
"""What the sheets show: how it was painted, and the weight."""
WEIGHTS = (0.13, 0.27, 0.4, 0.53, 0.8, 1.33)
JOINT_ONE = [
    ("nothing", None, ""),
    ("shape", shape, JOINT_WEIGHT),
    ("colour", colour, JOINT_WEIGHT),
    *(("colour and shape", colour_and_shape, weight) for weight in WEIGHTS),
    *(("colour and shape, and background elsewhere", both_with_background, weight) for weight in (0.27, 0.4)),
]
JOINT_TWO = [("nothing", None, ""), *(("objects and background", segmentation, weight) for weight in WEIGHTS)]


def judged(given: dict, picture: np.ndarray) -> dict:
    read, scene = read_image(picture), given["scene"]
    objs = read["objs"][: len(scene["objs"])]
    if scene["rel"]:
        objs = sorted(objs, key=lambda obj: obj["cx" if scene["rel"] == "left of" else "cy"])
    wanted = [place(quarter) for quarter in given["quarters"]]
    there = [bool(mask[round(obj["cy"]), round(obj["cx"])]) for mask, obj in zip(wanted, objs, strict=False)]
    solid = object_mask(picture)
    inside = (solid & np.any(wanted, axis=0)).sum() / max(1, solid.sum())
    right = score(picture, caption(scene))
    return {
        "in place": len(there) == len(wanted) and all(there),
        "inside": inside,
        "colour": right["color"],
        "shape": right["shape"],
        "all right": right["all"],
    }


def outlined(given: dict, picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    for quarter in given["quarters"]:
        rows, columns = np.nonzero(place(quarter))
        box = (columns.min(), rows.min(), columns.max(), rows.max())
        ImageDraw.Draw(image).rectangle([int(value) for value in box], outline="#ff00ff")
    return image
