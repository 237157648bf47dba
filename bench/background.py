"""Keeping the background of 32 edits: pasted, Poisson blended, and through a VAE fitted to it."""

import ctypes
import random
import re
import time
from pathlib import Path

import comfy.samplers
import numpy as np
import torch
from PIL import Image

from ..lab.comfy.runs import encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.world.data import COLORS, SHAPES, SIZE, caption, render, sample_scene
from ..lab.world.metrics import aggregate, grown, markdown_table, object_mask, psnr
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.poisson_blend import SteerPoissonBlend
from ..nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent
from ..nodes.stitch import SteerStitch
from .runner import FOLDER
from .turns import to_bytes

EDITS, STEPS, CFG = 16, 30, 5.0  # edits with each kind of mask
ROOM, TIGHT = 12, 3  # pixels round the object that its mask leaves
SHEET, CROP = 4, 64  # edits of each kind on the sheet; pixels of a crop
EULER = SteerBlendedSampler.execute(comfy.samplers.sampler_object("euler"), 0)[0]


def run() -> str:
    model, clip, vae = stock.load()
    tables, sheet = [], []
    for kind in ("roomy", "tight"):
        found = {name: [] for name in (*METHODS, BOTH)}
        for index in range(EDITS):
            given = problem(model, clip, vae, index, kind)
            results = {name: timed(method, vae, given) for name, method in METHODS.items()}
            results[BOTH] = both(vae, given, *results["decoder"])
            for name, (picture, seconds, memory) in results.items():
                found[name].append({**judged(given, picture[0]), "seconds": seconds, "peak MiB": memory})
            if index < SHEET:
                sheet += [(crop(given, given["source"][0]), f"{kind}: source")]
                sheet += [(crop(given, picture[0]), name) for name, (picture, *_) in results.items()]
        tables.append(markdown_table([row(name, values) for name, values in found.items()]))
    contact_sheet(sheet, FOLDER / "background.png", "Backgrounds: crops at the mask's edge", len(METHODS) + 2)
    return TEXT.format(tables=tables)


TEXT = f"""# Background

{2 * EDITS} edits: in pictures of two objects, one is repainted as another one inside a mask (Blended Diffusion, euler,
{STEPS} steps, cfg {CFG:g}), then the whole picture comes out of the VAE, and its background with it. Each method puts
the background back; 75 updates at the published rates where something is fitted. PSNR outside: of what is not masked,
against the source. Seam: by how much the steps of colour across the mask's edge exceed those that source or edit have
there, RMS, of 255. Colour shift: between the mean colours of the new object before and after, of 255. PSNR inside: of
what is masked, against the edit. Means over {EDITS} edits, and the worst. Peak: by how much the process's memory rose.

## Roomy masks

Squares that leave {ROOM} pixels round the old object.

{{tables[0]}}
## Tight masks

The old object's outline and {TIGHT} pixels round it, as a segmentation or a click gives it.

{{tables[1]}}
The order published (arXiv:2206.02779, section 3.2) appears. The plain paste leaves a seam. Poisson blending takes it
away and tints the edit, which a tight mask makes much worse. The fitted decoder leaves steps hardly larger than
Poisson's, a quarter (roomy) to two fifths (tight) of its tint, and comes within 45 dB of the background; pasting the
source over it then makes that exact and adds little of a seam. The fitted latent lies between it and plain decoding.
Beyond what was published: a soft edge inside the mask shows what was there before where the mask is tight, and one
outside it serves these flat backgrounds as well as the decoder, at no cost; it mixes the VAE's background into the
source there.

![sheet](background.png)"""


def problem(model, clip, vae, index: int, kind: str) -> dict:
    """A two-object scene whose last object is repainted as another one, inside a mask round it."""
    rng = random.Random(9000 + index)
    scene = sample_scene(rng, two=True)
    other, target = scene["objs"]
    colour = rng.choice([name for name in COLORS if name not in (scene["bg"], other["color"], target["color"])])
    shape = rng.choice([name for name in SHAPES if name != target["shape"]])
    wanted = {**scene, "objs": [other, {**target, "color": colour, "shape": shape, "rgb": COLORS[colour]}]}
    there = render({**scene, "objs": [target]}, only_mask=True) > 0
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    reach = target["r"] + ROOM
    square = (abs(rows - target["cy"]) < reach) & (abs(columns - target["cx"]) < reach)
    beside = render({**scene, "objs": [other]}, only_mask=True) > 0
    mask = (square if kind == "roomy" else grown(there, TIGHT)) & ~beside  # the other object stays whole
    source = torch.from_numpy(render(scene).copy())[None].float() / 255
    mask = torch.from_numpy(mask)[None].float()
    sigmas = sigmas_of(model, STEPS)
    guider = host_guider(model, encode_texts(clip, [caption(wanted)]), encode_texts(clip, [""]), CFG)
    latent = run_seeded(guider, EULER, sigmas, vae.encode(source), mask[:, None], seed=index)
    return {"source": source, "mask": mask, "latent": latent, "edited": vae.decode(latent), "scene": scene}


def plain(vae, given):  # the baseline: what every method starts from
    return vae.decode(given["latent"])


def stitched(feather: int):
    return lambda vae, given: SteerStitch.execute(given["source"], given["edited"], given["mask"], feather)[0]


def poisson(vae, given):
    return SteerPoissonBlend.execute(given["source"], given["edited"], given["mask"])[0]


def latent(vae, given):
    samples = {"samples": given["latent"]}
    fitted = SteerReconstructLatent.execute(vae, given["source"], samples, given["mask"], 75, 0.1)[0]
    return vae.decode(fitted["samples"])


def decoder(vae, given):
    samples = {"samples": given["latent"]}
    return SteerReconstructDecoder.execute(vae, given["source"], samples, given["mask"], 75, 1e-4)[0]


def both(vae, given, fitted, seconds: float, memory: float) -> tuple:
    """What the decoder gave, its background made exact."""
    picture, more, _ = timed(stitched(0), vae, {**given, "edited": fitted})
    return picture, seconds + more, memory


BOTH = "decoder, then stitch, feather 0"
METHODS = {
    "plain decoding": plain,
    "stitch, feather 0": stitched(0),
    "stitch, feather 8": stitched(8),
    "stitch, feather -8": stitched(-8),
    "Poisson": poisson,
    "latent": latent,
    "decoder": decoder,
}


def timed(work, *args) -> tuple:
    """(its result, seconds, by how many MiB this process's memory rose at most); the last needs Linux."""
    memory = Path("/proc/self/status")

    def kib(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+)", memory.read_text())[1])

    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that using it again counts
    Path("/proc/self/clear_refs").write_text("5")
    before, started = kib("VmRSS"), time.perf_counter()
    result = work(*args)
    return result, time.perf_counter() - started, (kib("VmHWM") - before) / 1024


def judged(given: dict, picture: torch.Tensor) -> dict:
    source, edited, mask = given["source"][0].numpy(), given["edited"][0].numpy(), given["mask"][0].numpy() > 0
    picture = picture.numpy()
    thing = object_mask(to_bytes(given["edited"][0])) & mask
    shift = (picture[thing].mean(0) - edited[thing].mean(0)) * 255 if thing.any() else np.zeros(3)
    return {
        "outside": psnr(picture, source, ~mask),
        "seam": seam(picture, source, edited, mask),
        "colour shift": float(np.linalg.norm(shift)),
        "inside": psnr(picture, edited, mask),
    }


def seam(picture, source, edited, mask) -> float:
    """By how much the steps across the mask's edge exceed those of source and edit there, of 255; RMS."""
    excess = []
    for axis in (0, 1):
        across = np.diff(mask.astype(int), axis=axis) != 0
        steps = [np.abs(np.diff(each, axis=axis))[across] for each in (picture, source, edited)]
        excess.append(np.maximum(0, steps[0] - np.maximum(steps[1], steps[2])))
    return 255 * float(np.sqrt((np.concatenate(excess) ** 2).mean()))


def row(name: str, values: list[dict]) -> dict:
    mean = aggregate(values)
    exact = all(value["outside"] == float("inf") for value in values)
    same = all(value["inside"] == float("inf") for value in values)
    return {
        "method": name,
        "PSNR outside": "exact" if exact else f"{mean['outside']:.1f} dB",
        "seam": f"{mean['seam']:.2f}",
        "worst seam": f"{max(value['seam'] for value in values):.2f}",
        "colour shift": f"{mean['colour shift']:.2f}",
        "worst shift": f"{max(value['colour shift'] for value in values):.2f}",
        "PSNR inside": "exact" if same else f"{mean['inside']:.1f} dB",
        "seconds": f"{mean['seconds']:.2f}",
        "peak MiB": f"{mean['peak MiB']:.0f}",
    }


def crop(given: dict, picture: torch.Tensor) -> Image.Image:
    """A corner of the mask, magnified, so that the other object or its place is in it."""
    rows, columns = np.nonzero(given["mask"][0].numpy())
    scene = given["scene"]["objs"]
    top = rows.min() - CROP // 2 if scene[0]["cy"] < scene[1]["cy"] else rows.max() - CROP // 2
    left = columns.min() - CROP // 2 if scene[0]["cx"] < scene[1]["cx"] else columns.max() - CROP // 2
    top, left = (int(np.clip(place, 0, SIZE - CROP)) for place in (top, left))
    part = to_bytes(picture)[top : top + CROP, left : left + CROP]
    return Image.fromarray(part).resize((4 * CROP, 4 * CROP), Image.Resampling.NEAREST)
