"""Attention captured in a run, put into later ones, and seen as heatmaps."""

from unicodedata import category

import torch
from comfy_api.latest import io
from torch import Tensor

from ..attention.attention_maps import heat
from ..attention.prompt_to_prompt import Timing
from ..pictures.heatmap import heatmap_picture
from ..pictures.maps import PIXELS
from .host import RunSampler, law, tokenized
from .host import attention as host_attention
from .inputs import cross_end, self_end
from .picture_inputs import check_picture
from .runs.attention_maps import capturing, with_recording
from .schema import advanced, shown, where_known
from .wires import SteerAttention, SteerEdit


class SteerCaptureAttention(io.ComfyNode):
    """Runs the sampling and keeps its attention (arXiv:2208.01626, Algorithm 1, the source's half)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerCaptureAttention",
            display_name="Capture Attention (Steer)",
            category="Steer/attention",
            description="Samples as SamplerCustomAdvanced does, and keeps what the positive prompt attended to: for "
            "heatmaps, and to put into later runs while this one stays cached.",
            **where_known(
                search_aliases=[
                    "p2p",
                    "prompt to prompt",
                    "attention map",
                    "attention control",
                    "feature injection",
                ]
            ),
            inputs=[
                io.Noise.Input("noise", tooltip="The starting noise."),
                io.Guider.Input("guider", tooltip="Any guider with one positive prompt."),
                io.Sampler.Input("sampler", tooltip="The sampler."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels."),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                advanced(
                    cross_end(
                        "How long to keep what Inject Attention needs of the words; 0 keeps only heatmaps.",
                        optional=True,
                    )
                ),
                advanced(self_end("How long to keep what Inject Attention needs of the layout.", optional=True)),
            ],
            outputs=[
                io.Latent.Output(tooltip="The sampled latent."),
                SteerAttention.Output(display_name="attention", tooltip="For Attention Heatmap and Inject Attention."),
            ],
        )

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, cross_end=0.8, self_end=0.4) -> io.NodeOutput:
        method = capturing(guider.model_patcher, sampler, cross_end, self_end)
        sampler = RunSampler("SteerCaptureAttention", method, sampler)
        latent = sampler.advanced(noise, guider, sigmas, latent_image)
        return io.NodeOutput(latent, method.recording)


class SteerInjectAttention(io.ComfyNode):
    """Prompt-to-Prompt from a finished source run (arXiv:2208.01626, Algorithm 1, the target's half)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerInjectAttention",
            display_name="Inject Attention (Steer)",
            category="Steer/attention",
            description="Makes a run with the target prompt attend as a captured run did. Change the edit and run "
            "again: the captured run stays cached.",
            **where_known(
                search_aliases=[
                    "p2p",
                    "prompt to prompt",
                    "attention map",
                    "attention control",
                    "feature injection",
                ]
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model of the captured run; it is not changed."),
                SteerAttention.Input("attention", tooltip="From Capture Attention, sampled with the source prompt."),
                SteerEdit.Input("edit", tooltip="From Prompt Edit. Its target goes to the guider as positive."),
                cross_end(),  # fmt: skip
                self_end(),  # fmt: skip
            ],
            outputs=[io.Model.Output(tooltip="For a guider with the edit's target as positive.")],
        )

    @classmethod
    def execute(cls, model, attention, edit, cross_end, self_end) -> io.NodeOutput:
        node = "SteerInjectAttention"
        host_attention.check_pairs(model.model)
        if edit.blend is not None:
            raise ValueError(
                "a local blend needs the source sampled alongside; use SteerPromptToPromptGuider, or the edit "
                "without SteerLocalBlend"
            )
        if attention.tokens != edit.source.length:
            raise ValueError(
                f"the captured run's prompt has {attention.tokens} tokens and the edit's source "
                f"{edit.source.length}; capture with the source of the same SteerPromptEdit"
            )
        if attention.texts and edit.source.text not in attention.texts:
            raise ValueError(
                f"the captured run's prompt is {attention.texts[0]!r} and the edit's source "
                f"{edit.source.text!r}; capture with the source of the same SteerPromptEdit"
            )
        timing = Timing(edit, law.sigma_at(model), cross_end, self_end)
        words = min(window.lowest for window in timing.words)
        if words < attention.words.lowest or timing.layout.lowest < attention.layout.lowest:
            raise ValueError(
                "cross_end, self_end or a word's window reach further than what was captured; raise them in "
                "SteerCaptureAttention"
            )
        return io.NodeOutput(with_recording(model, node, attention, edit, timing))


# words without a place of their own; named, they are shown all the same
SMALL_WORDS = frozenset(
    "a an the and or but of in on at to by with from for into onto as is are be it its this that "
    "'s 't 're 've 'm 'll 'd".split()
)


class SteerAttentionHeatmap(io.ComfyNode):
    """Which word painted what (Tang et al. 2023, DAAM, arXiv:2210.04885)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerAttentionHeatmap",
            display_name="Attention Heatmap (Steer)",
            category="Steer/attention",
            description="Shows which word painted what: for each picture a labelled row, with the heat of each word "
            "over it, and the heat as masks.",
            **where_known(
                has_intermediate_output=True,  # what it shows is sent again where its result is taken from the cache
                search_aliases=[
                    "daam",
                    "word map",
                    "cross attention map",
                    "explain",
                    "segmentation from text",
                    "mask from text",
                ],
            ),
            inputs=[
                SteerAttention.Input("attention", tooltip="From Capture Attention."),
                io.Clip.Input("clip", tooltip="The text encoder of the captured run."),
                io.String.Input("text", multiline=True, default="", tooltip="The positive prompt of the captured run."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases of the prompt, with commas: `cat, red hat`. Empty: all but small words "
                    "such as `a` and `of`.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The decoded pictures, to show the heat on: one for each latent, or the frames.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="One labelled row for each picture or frame."),
                io.Mask.Output(tooltip="The heat from 0 to 1: all words of the first picture, then of the next."),
            ],
        )

    @classmethod
    def execute(cls, attention, clip, text, words, image=None) -> io.NodeOutput:
        prompt = tokenized(clip, text)
        if prompt.length != attention.tokens:
            raise ValueError(
                f"the captured run's prompt has {attention.tokens} tokens and this text {prompt.length}; give the "
                "positive prompt of that run"
            )
        known = [tokenized(clip, given).tokens for given in attention.texts]
        if any(len(tokens) == attention.tokens for tokens in known) and prompt.tokens not in known:
            raise ValueError(
                f"the captured run's prompt is {attention.texts[0]!r} and this text {text!r}; give the prompt of "
                "that run"
            )
        phrases = phrases_of(prompt, words)
        height, width = size_of(attention, image)
        heats = torch.stack([heat(attention, prompt.positions(phrase), height, width) for phrase in phrases], 1)
        if image is not None:
            heats = heats[frames_shown(attention, len(image))]
        pictures = [None] * len(heats) if image is None else image[..., :3].float().cpu().numpy()
        rows = [heatmap_picture(one, phrases, picture) for one, picture in zip(heats.numpy(), pictures, strict=True)]
        sheet = torch.stack([torch.from_numpy(row) for row in rows])
        places = [len(prompt.positions(phrase)) for phrase in phrases]
        return io.NodeOutput(sheet, heats.flatten(0, 1), ui=shown(report(phrases, places, heats), "", sheet))


def report(phrases: list[str], places: list[int], heats: Tensor) -> str:
    """For each picture of `heats` (batch, words, height, width) where the words are, then their numbers of tokens."""
    lines = []
    for number, of_picture in enumerate(heats, 1):
        shares = [
            f"{phrase} {100 * float((heat > 0.5).float().mean()):.0f}%" if heat.any() else f"{phrase} nowhere"
            for phrase, heat in zip(phrases, of_picture, strict=True)
        ]
        lines.append(("" if len(heats) == 1 else f"picture {number}: ") + ", ".join(shares))
    lines[0] += " of the picture (where a word's heat is above half of its highest)"
    tokens = ", ".join(f"{phrase} {count}" for phrase, count in zip(phrases, places, strict=True))
    return "\n".join([*lines, "", f"tokens: {tokens}"])


def phrases_of(prompt, words: str) -> list[str]:
    """The phrases asked for, as typed; else the prompt's words once each. ValueError where there are none."""
    asked = [phrase for phrase in (part.strip() for part in words.replace("\n", ",").split(",")) if phrase]
    there = [word.text for word in prompt.words if any(map(_shown, word.text))]
    found = asked or list(dict.fromkeys(word for word in there if word not in SMALL_WORDS)) or there
    if not found:
        raise ValueError(f"the prompt {prompt.text!r} has no words to show")
    return found


def _shown(character: str) -> bool:
    return character.isalnum() or category(character) == "So"  # or an emoji; not punctuation


def size_of(attention, image) -> tuple[int, int]:
    """(height, width) of the pictures; ValueError for an image that is not of the run."""
    height, width = attention.latent[-2:]
    if image is None:
        return PIXELS * height, PIXELS * width
    check_picture("image", image, alpha=True)
    batch, of = attention.batch, f" of {attention.frames} frames" if attention.frames > 1 else ""
    aspect = abs(image.shape[2] * height / image.shape[1] - width) < 1.0
    if not aspect or not frames_shown(attention, len(image)):
        raise ValueError(
            f"image is {image.shape[0]} of {image.shape[2]}x{image.shape[1]}, the captured run {batch}{of} of "
            f"{PIXELS * width}x{PIXELS * height}; connect the decoded latents of that run"
        )
    return tuple(image.shape[1:3])


def frames_shown(attention, pictures: int) -> list[int]:
    """For each picture the row of its heat; none where so many pictures cannot be of the run.

    The first latent frame of a clip holds one picture and each further one the same number; or each holds one.
    """
    frames, clip = attention.frames, pictures // attention.batch
    steps = max(1, frames - 1)
    if pictures % attention.batch or (clip - 1) % steps or (clip > 1) != (frames > 1):
        return []
    of_clip = [-(-picture * steps // max(1, clip - 1)) for picture in range(clip)]
    return [which * frames + frame for which in range(attention.batch) for frame in of_clip]


NODES = [SteerCaptureAttention, SteerInjectAttention, SteerAttentionHeatmap]
