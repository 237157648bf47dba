"""The part of the demo that needs no ComfyUI: Steer's samplers on the shapes checkpoint through diffusers' UNet."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from tqdm import tqdm

from ...samplers.blended_diffusion import Blend
from ...samplers.core import SampleNoise, Step
from ...samplers.ddim import ddim
from ...samplers.masks import dilate
from ...samplers.noise_law import VARIANCE_EXPLODING as LAW
from ...samplers.repaint import model_calls, repaint
from ...samplers.sdedit import sdedit_sigmas
from ..models.shapes_unet.diffusers_bridge import Bridge, Denoise, load
from ..world.data import SIZE
from ..world.inputs import hole_mask, write_inputs
from .contact_sheet import contact_sheet

Captioned = tuple[Image.Image, str]
CFG, SEED = 5.0, 1
STEPS, INPAINTING_STEPS = 20, 50
STRENGTHS = (0.05, 0.5, 1.0)
RESAMPLES, JUMP_LENGTH = 10, 10
BAR = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed}"
NEEDS_HOST = """Done without ComfyUI: the samplers, on the small shapes checkpoint.
What needs ComfyUI: the nodes, the example workflows, the editor, and your own checkpoints.
For these set COMFYUI_PATH to a ComfyUI checkout, or clone it to ~/comfy/ComfyUI, and run the demo again."""


def main(out: Path) -> int:
    """Make the pictures and their contact sheet in `out`, and say what needs ComfyUI; the exit code."""
    print("No ComfyUI here: running Steer's samplers through diffusers.", flush=True)
    inputs = {name: Image.open(path) for name, path in write_inputs(out / "inputs").items()}
    bridge = load()
    pictures = [
        *text_to_image(bridge),
        *redrawn(bridge, inputs["strokes"]),
        *inpainted(bridge, inputs["inpaint"]),
        *outpainted(bridge, inputs["outpaint"]),
    ]
    for number, (picture, _) in enumerate(pictures, 1):
        picture.save(out / f"without_host_{number:02}.png")
    contact_sheet(pictures, out / "contact_sheet.png", "Steer without ComfyUI: the samplers on the shapes checkpoint")
    print(f"Pictures and contact sheet: {out}\n\n{NEEDS_HOST}")
    return 0


@dataclass(frozen=True)
class Prompted:
    """The bridge with a prompt and a starting noise: what every method below needs."""

    bridge: Bridge
    positive: str
    negative: str = ""
    seed: int = SEED

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self._denoise(x, sigma)

    @cached_property
    def _denoise(self) -> Denoise:
        positive, negative = (self.bridge.encode_text([text]) for text in (self.positive, self.negative))
        return self.bridge.denoiser(positive, negative, CFG)

    def start(self) -> Tensor:
        """Standard normal noise (1, 4, SIZE/8, SIZE/8)."""
        return torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(self.seed))

    def noise(self, stream: str) -> SampleNoise:
        """Fresh noise during the run."""
        return SampleNoise(self.seed, stream, self.start())


def text_to_image(bridge: Bridge) -> Iterator[Captioned]:
    """DDIM from noise: plain captions, and one with a negative prompt."""
    prompts = [
        ("a yellow cross on a black background", ""),
        ("a purple heart left of a pink star on a black background", ""),
        ("a red heart", ""),
        ("a red heart", "on a blue background"),
    ]
    sigmas = bridge.sigmas(STEPS)
    for positive, negative in prompts:
        denoise = Prompted(bridge, positive, negative)
        x = last(ddim(denoise, sigmas[0] * denoise.start(), sigmas, LAW), STEPS, "text to image")
        yield to_image(bridge, x), f"text to image: {positive}" + (f"; negative: {negative}" if negative else "")


def redrawn(bridge: Bridge, strokes: Image.Image) -> Iterator[Captioned]:
    """SDEdit from a crude painting."""
    yield strokes, "input: strokes"
    denoise, guide = Prompted(bridge, "a red heart on a blue background"), bridge.encode(to_tensor(strokes))
    for strength in STRENGTHS:
        sigmas, _ = sdedit_sigmas(bridge.sigmas, bridge.sigma_at(strength), STEPS)
        x = LAW.noised(guide, sigmas[0], denoise.start())
        x = last(ddim(denoise, x, sigmas, LAW), len(sigmas) - 1, f"SDEdit {strength}")
        yield to_image(bridge, x), f"SDEdit, strength {strength}: {denoise.positive}"


def inpainted(bridge: Bridge, picture: Image.Image) -> Iterator[Captioned]:
    """The hole of the inpainting picture redrawn, by RePaint and by Blended Diffusion."""
    yield on_gray(picture), "input: the hole to fill, gray"
    denoise, known = Prompted(bridge, "a green star on a blue background"), bridge.encode(to_tensor(picture))
    mask = to_latent_mask(torch.from_numpy(hole_mask()).float())
    yield to_image(bridge, run_repaint(denoise, known, mask, "RePaint")), f"RePaint: {denoise.positive}"
    yield to_image(bridge, run_blended(denoise, known, mask)), f"Blended Diffusion: {denoise.positive}"


def outpainted(bridge: Bridge, picture: Image.Image) -> Iterator[Captioned]:
    """The picture continued to the right, by RePaint."""
    yield picture, "input: a picture to continue"
    denoise = Prompted(bridge, "a red circle on a white background")
    added = (0, SIZE - picture.width, 0, 0)
    known = bridge.encode(pad(to_tensor(picture), added, value=0.5))
    # one more latent column: those at the seam have seen the gray through the encoder
    mask = dilate(to_latent_mask(pad(torch.zeros(SIZE, picture.width), added, value=1.0)), 1)
    yield to_image(bridge, run_repaint(denoise, known, mask, "outpainting")), f"outpainting: {denoise.positive}"


def run_repaint(denoise: Prompted, known: Tensor, mask: Tensor, label: str) -> Tensor:
    """RePaint at its defaults from pure noise."""
    sigmas = denoise.bridge.sigmas(INPAINTING_STEPS)
    noises = denoise.noise("step"), denoise.noise("known")
    x = sigmas[0] * denoise.start()
    steps = repaint(denoise, x, sigmas, LAW, known, mask, *noises, RESAMPLES, JUMP_LENGTH)
    return last(steps, model_calls(INPAINTING_STEPS, RESAMPLES, JUMP_LENGTH), label)


def run_blended(denoise: Prompted, known: Tensor, mask: Tensor) -> Tensor:
    """Blended Diffusion around DDIM from pure noise."""
    sigmas = denoise.bridge.sigmas(INPAINTING_STEPS)
    blend = Blend(sigmas, LAW, known, mask, denoise.noise("known"))
    steps = ddim(lambda x, sigma: blend.denoise(denoise, x, sigma), sigmas[0] * denoise.start(), sigmas, LAW)
    return blend.finish(last(steps, INPAINTING_STEPS, "Blended Diffusion"))


def last(steps: Iterator[Step], calls: int, label: str) -> Tensor:
    """The result of a run, with a progress bar of its model calls."""
    for step in tqdm(steps, desc=f"{label:18}", total=calls, bar_format=BAR):
        x = step.x
    return x


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in 0..1; colours under full transparency are kept, as the host's LoadImage does."""
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def to_image(bridge: Bridge, latent: Tensor) -> Image.Image:
    """The picture of a latent (1, 4, h, w)."""
    pixels = bridge.decode(latent)[0].permute(1, 2, 0)
    return Image.fromarray((pixels * 255).round().byte().numpy())


def to_latent_mask(mask: Tensor) -> Tensor:
    """A mask (H, W) at the latent's size, (1, 1, H/8, W/8)."""
    height, width = mask.shape
    return interpolate(mask[None, None], (height // 8, width // 8), mode="bilinear")


def on_gray(picture: Image.Image) -> Image.Image:
    """A picture with its transparent part shown as gray."""
    paper = Image.new("RGBA", picture.size, "gray")
    return Image.alpha_composite(paper, picture).convert("RGB")
