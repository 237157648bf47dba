"""Clips: new frames before, after and between those that are there, and masks in time."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ..pictures.frames import padded
from ..samplers.masks import of_clip_frames, of_latent_frames, paints
from .host import log
from .host import vae as host_vae
from .picture_inputs import check_picture, mask_like, sides
from .schema import shown, where_known

PAD, MASK = "SteerPadFrames", "SteerFrameMask"
BEHIND = (
    "A video VAE looks back, so it encodes the frames behind new ones with the copies in their place, and not quite as "
    "they were: Stitch puts them back"
)


class SteerPadFrames(io.ComfyNode):
    """Room for new frames before, after and between clips."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PAD,
            display_name="Pad Frames (Steer)",
            category="Steer/clips",
            description="Adds frames to a clip, to be sampled anew: after it, before it, or between it and a second "
            "clip. Until then each shows the frame nearest to it. Frame Mask turns its mask into the latent's.",
            **where_known(
                has_intermediate_output=True,
                search_aliases=[
                    "extend video",
                    "continue video",
                    "video outpaint",
                    "bridge clips",
                    "transition",
                    "in-between frames",
                    "loop video",
                ],
            ),
            inputs=[
                io.Image.Input("frames", tooltip="The clip, its frames as a batch."),
                io.Int.Input("before", default=0, min=0, max=4096, tooltip="New frames before the clip."),
                io.Int.Input(
                    "after",
                    default=16,
                    min=0,
                    max=4096,
                    tooltip="New frames after the clip. In all, video VAEs take 4k + 1 frames (Wan, Hunyuan) or 8k + 1 "
                    "(LTX), and leave out what is over.",
                ),
                io.Image.Input(
                    "following",
                    optional=True,
                    tooltip="A second clip of the same size, which the frames of `after` lead to.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The longer clip, for VAE Encode."),
                io.Mask.Output(tooltip="One for each frame: 1 new, 0 given. For Frame Mask."),
            ],
        )

    @classmethod
    def execute(cls, frames, before, after, following=None) -> io.NodeOutput:
        check_picture("frames", frames)
        if following is not None:
            check_picture("following", following)
            if frames.shape[1:] != following.shape[1:]:
                raise ValueError(
                    f"frames are {sides(frames)} and following {sides(following)}; scale one of them to the other's "
                    "size"
                )
        clip, mask = padded(frames, before, after, following)
        text = f"{before + after} of {len(clip)} frames are new. The mask is for Frame Mask, which tells latent frames"
        if before or following is not None and after:
            text += ". " + BEHIND
        return io.NodeOutput(clip, mask, ui=shown(text))


class SteerFrameMask(io.ComfyNode):
    """The mask of a clip's latent from frames: a latent frame is kept only if all of its frames are."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=MASK,
            display_name="Frame Mask (Steer)",
            category="Steer/clips",
            description="Says which frames of a clip are sampled anew, in latent frames: a video VAE packs several "
            "frames (4, of LTX 8) into one, the first alone. A latent frame is kept only if all its frames are to be. "
            "For Set Latent Noise Mask.",
            **where_known(
                has_intermediate_output=True,
                search_aliases=["video mask", "temporal mask", "temporal inpainting", "keyframes", "mask by frame"],
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="The video VAE that encoded the clip."),
                io.Latent.Input("latent_image", tooltip="The encoded clip."),
                io.Int.Input(
                    "first",
                    default=0,
                    min=-4096,
                    max=4096,
                    tooltip="The first frame to sample anew, from 0; below 0 from the end.",
                ),
                io.Int.Input("last", default=-1, min=-4096, max=4096, tooltip="The last one; -1 is the clip's last."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 what is sampled anew in those frames: the mask of Pad Frames, one for each frame or one "
                    "for all. Without it all of them.",
                ),
            ],
            outputs=[
                io.Mask.Output(tooltip="One for each latent frame, of its size. For Set Latent Noise Mask."),
                io.Mask.Output(display_name="frame_mask", tooltip="The same for each frame of the clip, for Stitch."),
            ],
        )

    @classmethod
    def execute(cls, vae, latent_image, first, last, mask=None) -> io.NodeOutput:
        samples = latent_image["samples"]
        clip = Clip(samples.shape[2:], host_vae.check_clip(vae, samples), host_vae.decoded_size(vae, samples))
        span = clip.frames_between(first, last)
        asked = clip.of_each_frame(mask)
        asked[: span.start] = asked[span.stop :] = 0.0
        of_latents = of_latent_frames(asked, clip.shape[0])
        of_frames = of_clip_frames(of_latents, clip.ratio)
        text, empty = report(asked, of_frames, clip.ratio), not paints(of_latents)
        (log.warning if empty else log.info)("%s: %s", MASK, text)
        return io.NodeOutput(of_latents, of_frames, ui=shown(text, text if empty else ""))


@dataclass(frozen=True)
class Clip:
    """What is known of an encoded clip."""

    shape: tuple[int, int, int]
    """Of its latent: frames, height, width."""
    ratio: int
    """How many frames each latent frame but the first holds."""
    size: tuple[int, int]
    """Of its frames, (height, width) in pixels."""

    @property
    def count(self) -> int:
        """How many frames it has."""
        return 1 + self.ratio * (self.shape[0] - 1)

    def frames_between(self, first: int, last: int) -> range:
        """The frames from first to last; ValueError for one that the clip does not have."""
        for name, value in (("first", first), ("last", last)):
            if not -self.count <= value < self.count:
                raise ValueError(
                    f"{name} is {value}; the clip's frames are 0 to {self.count - 1}, or from the end -{self.count} to "
                    "-1"
                )
        span = range(first % self.count, last % self.count + 1)
        if not span:
            raise ValueError(f"first is {first} and last {last}, which of {self.count} frames is before it")
        return span

    def of_each_frame(self, mask: Tensor | None) -> Tensor:
        """The mask of each frame, (count, h, w) of the latent's size; ValueError for one of other frames.

        A latent pixel is masked as much as the most masked of its pixels.
        """
        latents, height, width = self.shape
        if mask is None:
            return torch.ones(self.count, height, width)
        mask = mask_like(mask, *self.size, self.size[0] // height)
        if len(mask) not in (1, latents, self.count):
            raise ValueError(f"mask is of {len(mask)} frames and the clip of {self.count}; {self.fitting(len(mask))}")
        mask = adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]
        if len(mask) == latents:
            return of_clip_frames(mask, self.ratio)
        return mask.repeat(self.count // len(mask), 1, 1)

    def fitting(self, masks: int) -> str:
        """What would do in the place of so many masks."""
        over = masks - self.count
        if 0 < over < self.ratio:
            return (
                f"the VAE takes {self.ratio}k + 1 frames and has left out the last {over}: make the clip {over} "
                f"shorter or {self.ratio - over} longer"
            )
        return f"give one for all, one for each frame, or one for each of the {self.shape[0]} latent frames"


def report(asked: Tensor, made: Tensor, ratio: int) -> str:
    """How many of the frames stay, and how many do not that were to."""
    wanted, kept = (int((mask.flatten(1).amax(1) <= 0).sum()) for mask in (asked, made))
    text = f"{kept} of {len(made)} frames stay as they are"
    if kept == wanted:
        return text
    return (
        f"{text}; {wanted - kept} more that were to stay share a latent frame with new ones and are sampled anew too: "
        f"latent frames hold frame 0, then {ratio} frames each"
    )


NODES = [SteerPadFrames, SteerFrameMask]
