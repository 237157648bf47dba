"""Prompt-to-Prompt: swap, add and reweight words, in a local blend if wanted; source and target run in lockstep."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..attention.alignment import chosen, mapper, word_changes
from ..attention.prompt_to_prompt import Edit, LocalBlend, Timing
from ..attention.tokens import Prompt
from ..attention.word_values import numbers, windows, word_values
from ..attention.word_values import word_windows as windows_of
from .host import conditioning, encoded, errors_of, law, log, progress, tokenized
from .inputs import cross_end, scale, self_end, share
from .runs.prompt_to_prompt import PromptToPromptGuider
from .schema import advanced, answer_of, shown, where_known
from .wires import SteerEdit, SteerInversion


class SteerPromptEdit(io.ComfyNode):
    """Two prompts and which word became which (arXiv:2208.01626, section 3.2)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerPromptEdit",
            display_name="Prompt Edit (Steer)",
            category="Steer/attention",
            description="Encodes a source prompt and the prompt it is changed to, and works out which word became "
            "which, for the Prompt-to-Prompt nodes.",
            **where_known(
                has_intermediate_output=True,  # its text is sent again where its result is taken from the cache
                search_aliases=[
                    "prompt to prompt",
                    "p2p",
                    "prompt2prompt",
                    "edit image",
                    "edit photo",
                    "replace word",
                    "swap word",
                    "word weight",
                    "reweight",
                    "attention control",
                ],
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder (CLIP: SD1.x, SD2.x, SDXL)."),
                io.String.Input("source", multiline=True, default="", tooltip="The prompt of the picture as it is."),
                io.String.Input("target", multiline=True, default="", tooltip="The prompt of the picture wanted."),
                io.Combo.Input(
                    "mapping",
                    options=["auto", "replace", "refine"],
                    default="auto",
                    tooltip="replace: word by word, for a swap (both need the same number of words). refine: words "
                    "were added or taken away. auto: replace if the numbers are equal, else refine.",
                ),
                io.String.Input(
                    "equalizer",
                    default="",
                    tooltip="How strongly words of the target act: `fluffy: 2, old: -1`. 1 leaves a word as it is.",
                ),
                advanced(
                    io.String.Input(
                        "word_windows",
                        default="",
                        optional=True,
                        tooltip="Own windows for words of the target, as shares of the run: `lion: 0.4, jungle: "
                        "0.2-0.6`. For all other words cross_end decides.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="source", tooltip="The source prompt, encoded."),
                io.Conditioning.Output(display_name="target", tooltip="The target prompt, encoded."),
                SteerEdit.Output(display_name="edit", tooltip="What changes, for the Prompt-to-Prompt nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, equalizer, word_windows=""):
        return answer_of((check_equalizer, equalizer), (check_windows, word_windows))

    @classmethod
    def execute(cls, clip, source, target, mapping, equalizer, word_windows="") -> io.NodeOutput:
        check_equalizer(equalizer)
        check_windows(word_windows)
        prompts = tokenized(clip, source), tokenized(clip, target)
        matrix, kept = mapper(*prompts, mapping)
        values = word_values(prompts[1], equalizer)
        edit = Edit(*prompts, matrix, kept, values, tuple(windows_of(prompts[1], word_windows).items()))
        encodings = [
            encoded(clip, prompt, {conditioning.HALF: (name, source, target)})
            for name, prompt in zip(("source", "target"), prompts, strict=True)
        ]
        same = torch.equal(encodings[0][0][0], encodings[1][0][0]) and bool((values == 1.0).all())
        warning, text = NOTHING if same else "", alignment(edit, mapping, equalizer, word_windows)
        log.info("SteerPromptEdit: %s", warning or text.partition("\n")[0])
        return io.NodeOutput(*encodings, edit, ui=shown(f"{warning}\n{text}" if same else text, warning))


NOTHING = "nothing changes: both prompts are the same to the text encoder, and no word of the equalizer is other than 1"


def check_equalizer(equalizer: str) -> None:
    """ValueError for what is no equalizer, whatever the prompt is."""
    with errors_of("equalizer"):
        numbers(equalizer)


def check_windows(word_windows: str) -> None:
    """ValueError for what are no windows, whatever the prompt is."""
    with errors_of("word_windows"):
        windows(word_windows)


def alignment(edit: Edit, mapping: str, equalizer: str, word_windows: str) -> str:
    """Which mapping was taken and what became of the words, as `auto: refine  + big, - old`; then those that stay."""
    changed, kept = word_changes(edit.source, edit.target, edit.mapper)
    taken = chosen(edit.source, edit.target, mapping)
    text = f"{taken if taken == mapping else f'{mapping}: {taken}'}  {changed or 'no word changes'}"
    if weights := [f"{phrase} x{number:g}" for phrase, number in numbers(equalizer)]:
        text += f"; equalizer: {', '.join(weights)}"
    if spans := [f"{phrase} {start:g}-{end:g}" for phrase, (start, end) in windows(word_windows)]:
        text += f"; windows: {', '.join(spans)}"
    return f"{text}\n\nkept: {kept}" if kept else text


class SteerLocalBlend(io.ComfyNode):
    """Keeps an edit to where the named words are (arXiv:2208.01626, section 4.1)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerLocalBlend",
            display_name="Local Blend (Steer)",
            category="Steer/attention",
            description="Keeps a Prompt-to-Prompt edit to the places that the words attend to; everything else stays "
            "as in the source picture.",
            **where_known(
                search_aliases=[
                    "prompt to prompt",
                    "p2p",
                    "local edit",
                    "keep background",
                    "mask from text",
                    "attention mask",
                ]
            ),
            inputs=[
                SteerEdit.Input("edit", tooltip="From Prompt Edit."),
                io.String.Input(
                    "source_words", default="", tooltip="Words of the source prompt whose places may change: `cat`."
                ),
                io.String.Input(
                    "target_words", default="", tooltip="Words of the target prompt whose places may change: `dog`."
                ),
                share(
                    "threshold",
                    0.3,
                    "How strongly a place has to attend to the words, relative to the strongest. "
                    "Lower lets the edit reach further.",
                ),
                advanced(
                    share(
                        "start_percent",
                        0.2,
                        "Where in the run the blending begins; before, the maps are only collected.",
                        optional=True,
                    )
                ),
            ],
            outputs=[SteerEdit.Output(display_name="edit", tooltip="The edit, kept to those places.")],
        )

    @classmethod
    def validate_inputs(cls, source_words, target_words):
        return answer_of((phrases_in, source_words, "source_words"), (phrases_in, target_words, "target_words"))

    @classmethod
    def execute(cls, edit, source_words, target_words, threshold, start_percent=0.2) -> io.NodeOutput:
        blend = LocalBlend(
            words_at(edit.source, source_words, "source_words"),
            words_at(edit.target, target_words, "target_words"),
            threshold,
            start_percent,
        )
        return io.NodeOutput(replace(edit, blend=blend))


def words_at(prompt: Prompt, words: str, name: str) -> tuple[int, ...]:
    """Token positions of words or phrases separated by commas; ValueError for none, or one that is not there."""
    phrases = phrases_in(words, name, prompt)
    return tuple(sorted({position for phrase in phrases for position in prompt.positions(phrase)}))


def phrases_in(words: str, name: str, prompt: Prompt | None = None) -> list[str]:
    """Words or phrases separated by commas; ValueError for none, with those of the prompt where it is known."""
    phrases = [phrase for phrase in (part.strip() for part in words.split(",")) if phrase]
    if not phrases:
        there = ", ".join(word.text for word in prompt.words) if prompt else "a word of that prompt, such as `cat`"
        raise ValueError(f"{name} is empty; name {'at least one of: ' if prompt else ''}{there}")
    return phrases


class SteerPromptToPromptGuider(io.ComfyNode):
    """Source and edit from one latent, the source's attention in the edit (arXiv:2208.01626, Algorithm 1)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerPromptToPromptGuider",
            not_idempotent=True,  # not taken from an equal node in the cache: the run draws on this one
            display_name="Prompt-to-Prompt Guider (Steer)",
            category="Steer/guiders",
            description="Samples the source prompt and the target prompt together, and makes the target attend as the "
            "source does: the picture stays, what the words changed changes. Returns both, the source first. With an "
            "inversion the source is the inverted picture itself, exactly (Direct Inversion).",
            **where_known(
                search_aliases=[
                    "p2p",
                    "prompt2prompt",
                    "direct inversion",
                    "pnp inversion",
                    "edit photo",
                    "edit image",
                    "attention control",
                ]
            ),
            inputs=[
                io.Model.Input("model", tooltip="A UNet model (SD1.x, SD2.x, SDXL); it is not changed."),
                io.Conditioning.Input("source", tooltip="From Prompt Edit."),
                io.Conditioning.Input("target", tooltip="From Prompt Edit."),
                io.Conditioning.Input("negative", tooltip="The negative of both (empty, or from Null-Text)."),
                scale("cfg", 7.5, "Guidance scale; 1 is off."),  # fmt: skip
                SteerEdit.Input("edit", tooltip="From Prompt Edit, through Local Blend if wanted."),
                cross_end(),  # fmt: skip
                self_end(
                    "How long the picture keeps the source's layout (self-attention up to 16x16). "
                    "Lower it where shapes are to change."
                ),
                io.Conditioning.Input(
                    "source_negative",
                    optional=True,
                    tooltip="A negative for the source alone, such as its own prompt or its null-text.",
                ),
                SteerInversion.Input(
                    "inversion",
                    optional=True,
                    tooltip="Direct Inversion: the source follows this trajectory, whatever the cfg. Connect the "
                    "inversion's NOISE and LATENT too.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced, which then returns source and edit.")],
        )

    @classmethod
    def execute(
        cls, model, source, target, negative, cfg, edit, cross_end, self_end, source_negative=None, inversion=None
    ) -> io.NodeOutput:
        node = "SteerPromptToPromptGuider"
        if inversion is not None and source_negative is not None:
            raise ValueError(
                "source_negative has no effect with an inversion, since the source then follows its "
                "trajectory; disconnect one of the two"
            )
        timing = Timing(edit, law.sigma_at(model), cross_end, self_end)
        guider = PromptToPromptGuider(node, model, edit, timing, cfg, inversion, progress.running_node())
        guider.set_prompts(source, target, negative, source_negative)
        return io.NodeOutput(guider)


NODES = [SteerPromptEdit, SteerLocalBlend, SteerPromptToPromptGuider]
