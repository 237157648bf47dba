"""DiffEdit's mask: the part of a picture that a change of prompt is about."""

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..pictures.heatmap import overlaid
from ..pictures.maps import outlined
from .host import checks, log, progress
from .inputs import share
from .runs.diffedit import Settings, contrast_of, pixels_of
from .schema import PICTURES, answer_of, check_strength, shown, where_known

NODE = "SteerDiffEditMask"


class SteerDiffEditMask(io.ComfyNode):
    """A mask from two prompts: where the model's answers to them differ (DiffEdit, arXiv:2210.11427)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="DiffEdit Mask (Steer)",
            category="Steer/masks",
            description="Finds the part of a picture that a change of prompt is about: noises the picture and marks "
            "where the model's answers to the two prompts differ most. For Set Latent Noise Mask.",
            **where_known(
                has_intermediate_output=True,  # what it shows is sent again where its result is taken from the cache
                search_aliases=[
                    "auto mask",
                    "mask from text",
                    "text mask",
                    "find what changes",
                    "find and replace",
                ],
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that will edit."),
                io.Conditioning.Input("source", tooltip="What the picture shows, or an empty prompt."),
                io.Conditioning.Input(
                    "target", tooltip="What it is to show: best the same prompt with the word changed."
                ),
                io.Latent.Input(
                    "latent_image", tooltip="The encoded picture. With a noise mask, only what is inside is considered."
                ),
                share(
                    "strength",
                    0.5,
                    "How much noise, as a share of diffusion time: with less the model sees the picture too "
                    "well to believe the target, with more it does not see where things are.",
                ),
                io.Int.Input(
                    "samples",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="Noises to average over, each with one prediction for either prompt.",
                ),
                share(
                    "threshold",
                    0.5,
                    "What is in the mask has more than 3 x threshold times the picture's mean contrast: at 0.5 "
                    "one and a half times. Less makes the mask larger; for a new background 0.1 to 0.2.",
                ),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Of the noises."),
            ],
            outputs=[
                io.Mask.Output(tooltip="1 where to edit, at the picture's size; empty if the prompts are the same."),
                io.Image.Output(display_name="heatmap", tooltip="The contrast that the mask is cut from, as colours."),
            ],
        )

    @classmethod
    def validate_inputs(cls, strength):
        return answer_of((check_strength, NODE, strength))

    @classmethod
    def execute(cls, model, source, target, latent_image, strength, samples, threshold, seed) -> io.NodeOutput:
        check_strength(NODE, strength)
        latent = checks.samples_of(model, latent_image)
        settings, noise_mask = Settings(strength, samples, threshold, seed), latent_image.get("noise_mask")
        conds = {"source": source, "target": target}
        previews = progress.previews(model, samples)
        mask, heat, looked = contrast_of(NODE, model, conds, latent, noise_mask, settings, **previews)
        text, usual = report(mask, heat, looked), all(0.0 < share < 1.0 for share in mask.flatten(1).mean(1))
        (log.info if usual else log.warning)("%s: %s", NODE, text)
        # by `nearest`, so that the host, which resizes a noise mask to the latent, gets this very mask again
        ways = (mask, "nearest"), (heat, "bicubic")
        mask, heat = (enlarged(values, pixels_of(model), how) for values, how in ways)
        colours = np.stack([overlaid(values, None) for values in heat.clamp(0.0, 1.0).numpy()]).astype(np.float32)
        heatmap = torch.from_numpy(colours)
        pictures = seen(progress.source_picture(model, latent, mask.shape[1:]), mask, heatmap)
        return io.NodeOutput(mask, heatmap, ui=shown(text, "" if usual else text, pictures))


def seen(source: Tensor | None, mask: Tensor, heatmap: Tensor) -> Tensor:
    """The mask outlined over what the latents show, and beside it the heat; over the heat where that is not known."""
    mask, heatmap = mask[:PICTURES], heatmap[:PICTURES]
    return outlined(heatmap, mask) if source is None else torch.cat([outlined(source, mask), heatmap], 2)


def report(mask: Tensor, heat: Tensor, looked: Tensor) -> str:
    """For each picture what share of it the mask is, and where it is empty or whole why."""
    lines: list[str] = []
    for number, (one, warm, seen) in enumerate(zip(mask, heat, looked, strict=True), 1):
        share, name = float(one.mean()), "the picture" if len(mask) == 1 else f"picture {number}"
        if not seen:
            lines.append(f"{name}: the mask is empty, since the noise mask of latent_image is")
        elif not warm.any():
            lines.append(f"{name}: the mask is empty, since the two prompts are the same to the model; change a word")
        elif share == 0.0:
            lines.append(f"{name}: the mask is empty, since nothing stands out so far; lower the threshold")
        elif share == 1.0:
            lines.append(f"{name}: the mask is the whole picture; raise the threshold")
        else:
            lines.append(f"{name}: the mask is {100 * share:.0f}% of it")
    return "\n".join(lines)


def enlarged(values: Tensor, pixels: int, how: str) -> Tensor:
    """(batch, [frames,] height, width) of a latent as (pictures, height, width) of the pictures' size."""
    return interpolate(values.flatten(0, -3)[:, None], scale_factor=pixels, mode=how)[:, 0]


NODES = [SteerDiffEditMask]
