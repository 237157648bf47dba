"""Null-text optimisation: a negative conditioning for each step, under which guidance returns the inverted picture."""

from math import inf, sqrt

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor
from tqdm.auto import tqdm

from ..samplers.inversion import Inversion, spread
from ..samplers.null_text import InnerStep, null_text, step_early_stop
from .host.conditioning import negative_takes_over
from .host.gradients.tensors import gradients
from .host.law import check_inversion_fits
from .host.progress import log, show_progress_text
from .runs.null_text import Branches, check_guidance, with_branches
from .schema import advanced, shown, where_known
from .wires import SteerInversion

NODE = "SteerNullText"
BACK, GONE = "the picture comes back", "the picture does not come back"
MISSED = 0.1  # of the latents' std, RMS, above which the picture is not back
MORE = "raise inner_steps, lower the cfg, or invert again with the picture's own prompt at cfg 1"
TIMED = {"start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end"}


class SteerNullText(io.ComfyNode):
    """The negative conditioning under which CFG returns an inverted picture (arXiv:2211.09794, Algorithm 1)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Null-Text Optimization (Steer)",
            category="Steer/inversion",
            description="Changes the negative conditioning, step by step, until guidance at this cfg follows the "
            "inversion and so returns its picture. The result is a negative for any sampler: with the same positive it "
            "returns the picture, with an edited one it changes what the words change.",
            **where_known(
                has_intermediate_output=True,  # its report is sent again where its result is taken from the cache
                search_aliases=["null text inversion", "nti", "negative prompt inversion"],
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample; it is not changed."),
                io.Conditioning.Input("positive", tooltip="The prompt of the picture, the one it was inverted with."),
                io.Conditioning.Input("negative", tooltip="Where the search starts: usually an empty prompt."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The guidance scale that will be sampled with.",
                ),  # fmt: skip
                SteerInversion.Input("inversion", tooltip="From an inversion at cfg 1 with the same positive."),
                io.Int.Input(
                    "inner_steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="Predictions, and updates of the embedding, in each step at most.",
                ),  # fmt: skip
                advanced(
                    io.Float.Input(
                        "learning_rate",
                        default=0.01,
                        min=1e-6,
                        max=10.0,
                        step=0.001,
                        round=False,
                        tooltip="Of the first step; it falls to half of it over the run.",
                    )
                ),  # fmt: skip
                advanced(
                    io.Float.Input(
                        "early_stop",
                        default=1e-5,
                        min=0.0,
                        max=1.0,
                        step=1e-6,
                        round=False,
                        tooltip="A step is done when its loss is below this (a hundred times this in the last steps); "
                        "0 always makes all updates.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The negative for any guider or KSampler, at the same cfg and with the inversion's sigmas."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, inversion, inner_steps, learning_rate, early_stop
    ) -> io.NodeOutput:
        check_inversion_fits(inversion, model)
        check_conditionings(positive, negative, inversion)
        check_guidance(model)
        settings = cfg, inner_steps, learning_rate, early_stop
        results, predictions = optimise(model, positive, negative, inversion, settings)
        text = report(results, predictions, inversion, settings)
        log.info("%s: %s", NODE, text)
        embeddings, options = [item.embedding for item in results], negative_takes_over(positive, negative)
        verdict = text.partition("\n")[0]
        warning = verdict if verdict.startswith(GONE) else ""
        return io.NodeOutput(windows(embeddings, inversion.sigmas, options), ui=shown(text, warning))


def check_conditionings(positive, negative, inversion: Inversion) -> None:
    """ValueError for what cannot become one negative for each step."""
    if len(negative) != 1:
        raise ValueError(
            f"negative holds {len(negative)} conditionings, and only one can be optimised; give it without "
            "Conditioning Combine"
        )
    rows, batch = negative[0][0].shape[0], inversion.latents[0].shape[0]
    if batch % rows:
        raise ValueError(f"negative holds {rows} prompts and the inversion {batch} pictures; give one prompt for all")
    timed = TIMED & set(negative[0][1])
    if timed:
        raise ValueError(
            f"negative is limited to a part of the run ({', '.join(sorted(timed))}); give a plain prompt, since each "
            "step gets a negative of its own"
        )
    for name, entries in (("positive", positive), ("negative", negative)):
        if any("area" in options or options.get("set_area_to_bounds") for _, options in entries):
            raise ValueError(
                f"{name} has an area, for which the host makes a second negative of its own; use a mask without "
                "bounds (Conditioning Set Mask, set_cond_area: default)"
            )


def optimise(model, positive, negative, inversion: Inversion, settings) -> tuple[list[InnerStep], int]:
    """The last inner step of each step, and the number of inner predictions."""
    cfg, inner_steps, learning_rate, early_stop = settings
    steps, results, counts = len(inversion.sigmas) - 1, {}, []

    def work(branches: Branches):
        start = branches.embedding(inversion.latents[0].shape[0])
        bar, shown = comfy.utils.ProgressBar(steps * inner_steps), tqdm(total=steps, desc="null-text")
        searching = null_text(branches.conditional, branches.unconditional, start, inversion, cfg, inner_steps,
                              learning_rate, early_stop, gradients)  # fmt: skip
        with shown:
            for item in searching:
                results[item.step] = item
                counts.append(1)
                bar.update_absolute(item.step * inner_steps + item.inner + 1)
                loss = float(item.losses.mean())
                shown.set_postfix(update=item.inner, loss=f"{loss:.2e}", refresh=False)
                shown.update(item.step + 1 - shown.n)
                show_progress_text(f"{NODE}: step {item.step + 1} of {steps}, update {item.inner}: loss {loss:.2e}")

    if cfg == 1.0:  # the negative has no part in it
        start = negative[0][0].float()
        return list(null_text(None, None, start, inversion, cfg)), 0
    with_branches(model, positive, negative, inversion, work)
    return list(results.values()), len(counts)


def windows(embeddings: list[Tensor], sigmas: tuple[float, ...], options: dict) -> list:
    """A conditioning with an entry for each step, of which exactly one is active at any sigma.

    The entries meet midway between the steps, in log sigma, and reach from infinity to 0. The host takes a window's
    ends inclusive and compares in float32: the next window starts one float32 below the last one's end, so that a
    sampler which calls the model exactly midway (dpm_2) does not find two.
    """
    levels = torch.tensor(sigmas[:-1], dtype=torch.float64)
    cuts = (levels[:-1] * levels[1:]).sqrt().float()
    starts = [inf, *torch.nextafter(cuts, torch.zeros_like(cuts)).tolist()]
    ends = [*cuts.tolist(), 0.0]
    return [
        [embedding.cpu(), {**options, "timestep_start": start, "timestep_end": end}]
        for embedding, start, end in zip(embeddings, starts, ends, strict=True)
    ]


def report(results: list[InnerStep], predictions: int, inversion: Inversion, settings) -> str:
    """What came of it, the verdict first."""
    cfg, inner_steps, _, early_stop = settings
    steps = len(results)
    if cfg == 1.0:
        return "cfg is 1, where the negative has no part: it is returned as it was, for each step"
    source = inversion.latents[-1]
    error = sqrt(float((results[-1].x.to(source) - source).square().mean())) / spread(source)
    stopped = sum(bool((item.losses < step_early_stop(early_stop, item.step, steps)).all()) for item in results)
    share = f"{100 * error:.3g}% of its latents' std"
    back = f"{BACK} with an RMS error of {share}" if error <= MISSED else f"{GONE}: its RMS error is {share}; {MORE}"
    return (
        f"{back}\n"
        f"{steps} steps at cfg {cfg:g}, {steps + predictions} predictions: {stopped} steps reached the early stop, the "
        f"others made {inner_steps} updates"
    )


NODES = [SteerNullText]
