"""Null-text optimization inside a run of the host: the two branches of a guided prediction, and the search."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...samplers.inversion import Inversion, spread
from ...samplers.null_text import InnerStep, null_text, step_early_stop, unguided
from ..host import Differentiable, Run, RunSampler, checks, conditioning, gradients, guiders, plain_guider, progress

NODE = "SteerNullText"
BACK, GONE = "the picture comes back", "the picture does not come back"
MISSED = 0.1
"""The RMS error, in units of the latents' std, above which the picture does not come back."""
MORE = "raise inner_steps, lower the cfg, or invert again with the picture's own prompt at cfg 1"


@dataclass(frozen=True)
class Settings:
    """What the search is for and how far it goes, as `samplers.null_text.null_text` takes it."""

    cfg: float
    inner_steps: int
    learning_rate: float
    early_stop: float


class Branches:
    """The predictions of one run apart: the positive's, and the negative's under embeddings that can be differentiated.

    Made by the host's own processing of conditionings, so that ControlNets, masks and LoRA hooks act as in sampling.
    """

    def __init__(self, run: Run, differentiable: Differentiable):
        self._run, self._conds, self._differentiable = run, run.guider.conds, differentiable

    def embedding(self, batch: int) -> Tensor:
        """The negative's (batch, tokens, channels), float32; ValueError where the model does not use it as it is."""
        (entry,) = self._conds["negative"]
        context, embedding = entry["model_conds"].get("c_crossattn"), entry.get("cross_attn")
        if context is None or embedding is None or not conditioning.same(context.cond, embedding):
            raise ValueError(
                f"{type(self._run.model).__name__} does not use its text embedding as it is given, so there is nothing "
                "to optimise; models of the SD1.x, SD2.x, SDXL and SD3 kind work"
            )
        embedding = embedding.to(self._differentiable.patcher.load_device, torch.float32)
        return embedding.repeat(batch // embedding.shape[0], 1, 1)

    def conditional(self, x: Tensor, sigma: float) -> Tensor:
        denoised = self._run.predict([self._conds["positive"]], x, sigma)[-1]
        self._run.check_answer(x, denoised, sigma)
        return denoised

    def unconditional(self, x: Tensor, sigma: float, embedding: Tensor) -> Tensor:
        """To be called inside `gradients`."""
        (entry,) = self._conds["negative"]
        context = entry["model_conds"]["c_crossattn"]._copy_with(embedding)
        entry = {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": context}}
        options = self._differentiable.options(self._run.options)
        # in the second place, which patches take for the negative's
        return self._differentiable(lambda: self._run.predict([None, [entry]], x, sigma, options)[-1])


def check_guidance(model) -> None:
    """ValueError for a model with patches that change guidance or skip calls: the search knows plain guidance alone."""
    checks.check_every_call(model.model_options)
    if guiders.patches_guide(model.model_options) or guiders.patches_wrap_predictions(model):
        raise ValueError(
            "the model has a patch that changes guidance (such as PAG, SAG or RescaleCFG), which the search does not "
            "know of; remove it here and where the result is sampled with"
        )


def with_branches(model, positive, negative, inversion: Inversion, work: Callable[[Branches], None]) -> None:
    """Calls `work` once, inside a run of the host on the model and the two conditionings; the model stays as it is."""
    # for LoRA hooks, the host may take another copy of the model
    guider = plain_guider(model, {"positive": positive, "negative": negative})
    differentiable = Differentiable(guider.model_patcher)
    guider.model_patcher = differentiable.patcher
    # the models' own preparation looks at the latent (inpainting models take the picture from it)
    source = model.get_model_object("latent_format").process_out(inversion.latents[-1])

    def method(run: Run) -> Tensor:
        work(Branches(run, differentiable))
        return run.known

    RunSampler(NODE, method).run_once(guider, torch.tensor(inversion.sigmas), source)


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
    limits = conditioning.time_limits(negative[0][1])
    if limits:
        raise ValueError(
            f"negative is limited to a part of the run ({', '.join(limits)}); give a plain prompt, since each "
            "step gets a negative of its own"
        )
    for name, entries in (("positive", positive), ("negative", negative)):
        if any(conditioning.has_area(options) for _, options in entries):
            raise ValueError(
                f"{name} has an area, for which the host makes a second negative of its own; use a mask without "
                "bounds (Conditioning Set Mask, set_cond_area: default)"
            )


def optimise(model, positive, negative, inversion: Inversion, settings: Settings) -> tuple[list[InnerStep], int]:
    """The last inner step of each step, and the number of inner predictions."""
    if settings.cfg == 1.0:  # the negative has no part in it
        return list(unguided(negative[0][0], inversion)), 0
    results: dict[int, InnerStep] = {}
    predictions = 0

    def search(branches: Branches) -> None:
        nonlocal predictions
        start = branches.embedding(inversion.latents[0].shape[0])
        steps = null_text(
            branches.conditional,
            branches.unconditional,
            start,
            inversion,
            settings.cfg,
            settings.inner_steps,
            settings.learning_rate,
            settings.early_stop,
            gradients,
        )
        for item in shown(steps, len(inversion.sigmas) - 1, settings.inner_steps):
            results[item.step] = item
            predictions += 1

    with_branches(model, positive, negative, inversion, search)
    return list(results.values()), predictions


def shown(searching: Iterator[InnerStep], steps: int, inner_steps: int) -> Iterator[InnerStep]:
    """The search, with a bar, and its loss on the node."""
    bar = progress.bar(steps * inner_steps)
    with tqdm(total=steps, desc="null-text") as line:
        for item in searching:
            yield item
            bar.update_absolute(item.step * inner_steps + item.inner + 1)
            loss = f"loss {float(item.losses.mean()):.2e}"
            line.set_postfix_str(f"update={item.inner}, {loss}", refresh=False)
            line.update(item.step + 1 - line.n)
            progress.show_text(f"{NODE}: step {item.step + 1} of {steps}, update {item.inner}: {loss}")


def report(results: list[InnerStep], predictions: int, inversion: Inversion, settings: Settings) -> str:
    """What came of it, the verdict first."""
    steps = len(results)
    if settings.cfg == 1.0:
        return "cfg is 1, where the negative has no part: it is returned as it was, for each step"
    source = inversion.latents[-1]
    error = sqrt(float((results[-1].x.to(source) - source).square().mean())) / spread(source)
    stopped = sum(
        bool((item.losses < step_early_stop(settings.early_stop, item.step, steps)).all()) for item in results
    )
    share = f"{100 * error:.3g}% of its latents' std"
    back = f"{BACK} with an RMS error of {share}" if error <= MISSED else f"{GONE}: its RMS error is {share}; {MORE}"
    return (
        f"{back}\n"
        f"{steps} steps at cfg {settings.cfg:g}, {steps + predictions} predictions: {stopped} steps reached the early "
        f"stop, the others made {settings.inner_steps} updates"
    )
