"""A guider round any other, whose estimates losses change; all within one run of the host."""

from copy import copy

import torch
from torch import Tensor

from ...samplers.gradient_guidance import at_top, change_by_estimate, change_by_x, limited, near_top, round_top
from ..host import (
    GuidedModels,
    Run,
    RunGuider,
    RunSampler,
    SampleCall,
    errors_of,
    gradients,
    guiders,
    progress,
)
from ..host import (
    law as host_law,
)
from .loss_terms import Acting, Term, finite, gradients_of
from .proximal import change_solved, solved_together


class GradientGuider(RunGuider, guiders.WrappedGuider):
    """A GUIDER of the host or of Steer, guided by a loss too.

    One round another becomes one with both terms, which share the model's calls.
    """

    def __init__(self, guider, term: Term):
        nested = isinstance(guider, GradientGuider)
        super().__init__(guider._guider if nested else guider)
        self.terms = (*guider.terms, term) if nested else (term,)
        self.node = term.node

    def prepared(self, call: SampleCall) -> tuple[object, SampleCall]:
        guider = copy(self._guider)
        host_law.noise_law(guider.model_patcher.get_model_object("model_sampling"))
        terms = [term.fitted(call.latent_image) for term in self.terms]
        terms = tuple(term for term in terms if not term.nothing_to_do())
        if not terms:
            return guider, self.checked(call)
        guidance = Guidance(call.sampler, terms, tuple(call.latent_image.shape))
        guider.model_patcher = guidance.models.loaded_with(guider.model_patcher)
        sampler = RunSampler(self.node, guidance, call.sampler)
        return guider, call._replace(sampler=sampler)


class Guidance:
    """Another SAMPLER, whose every estimate is changed by the losses that act at its level: the method of one run."""

    def __init__(self, sampler, terms: tuple[Term, ...], shape: tuple[int, ...]):
        self.sampler, self.terms = sampler, terms
        patchers = [patcher for term in terms for patcher in term.loss.patchers]
        through = any(term.differentiates_model for term in terms)
        self.models = GuidedModels(terms[-1].node, patchers, through, max(term.loss.memory(shape) for term in terms))
        self._acting: list[Acting] = []
        self._edits = isinstance(sampler, RunSampler) and sampler.two_prompts
        """Whether the sampler edits a source, beside the target in the batch."""

    def __call__(self, run: Run) -> Tensor:
        self._acting = [self._started(term, run) for term in self.terms]
        return run.sample(self.sampler, self.change, fits_masks=True)

    def _started(self, term: Term, run: Run) -> Acting:
        with errors_of(term.node):
            run.check()
            if term.differentiates_model:
                run.check_every_call()
            run, draws = run.under(term.node, term.mask), []
            if term.iterations > 1:
                run = run.holding(draws)
            loss = term.loss.start(run, run.model.latent_format, lambda patcher: self.models.others[id(patcher)])
            return Acting(term, loss, run, draws)

    def change(self, denoise: guiders.Call, x: Tensor, level: float) -> Tensor:
        """The estimate with what each loss changes of it."""
        acting = [item for item in self._acting if item.term.acts(level)]
        if not acting:
            return denoise(x)
        node = acting[-1].term.node
        denoised, changes = self.models.computed(node, lambda: self._changes(denoise, x, level, acting))
        for change in changes:
            denoised = denoised + (of_target(change) if self._edits else change).to(denoised)
        return denoised

    def _changes(
        self, denoise: guiders.Call, x: Tensor, level: float, acting: list[Acting]
    ) -> tuple[Tensor, list[Tensor]]:
        """The estimate, and what is added to it."""
        once = [item for item in acting if item.term.iterations == 1]
        denoised, changes = self._changes_at_once(denoise, x, level, once)
        changes = [
            limited(term.scale * change, level, run.law, term.max_change, run.mask)
            for (term, _, run, _), change in zip(once, changes, strict=True)
        ]
        return denoised, changes + [change_solved(items, denoised, level) for items in solved_together(acting)]

    def _changes_at_once(
        self, denoise: guiders.Call, x: Tensor, level: float, acting: list[Acting]
    ) -> tuple[Tensor, list]:
        """The estimate, and by how much each loss changes it at scale 1, by one gradient."""
        law = self._acting[0].run.law
        by_x = [item for item in acting if item.term.loss.noisy or item.term.through_model]
        denoised, slopes = self._by_x(denoise, x, level, by_x)
        if denoised is None:
            denoised = denoise(x)
        if by_x and at_top(level, law):
            slopes = {key: -0.5 * slope for key, slope in slopes.items()}
            for near, beside, weight in round_top(x, denoised, level, law):
                denoise_near = denoise._replace(options=at_level(denoise.options, beside))
                _, slopes_near = self._by_x(denoise_near, near, beside, by_x)
                slopes = {key: slope + weight * slopes_near[key] for key, slope in slopes.items()}
            level_of_slopes = near_top(law)
        else:
            level_of_slopes = level
        changes = {key: change_by_x(slope, level_of_slopes, law) for key, slope in slopes.items()}
        by_estimate = [item for item in acting if id(item) not in changes]
        for key, slope in self._slopes(by_estimate, denoised, level).items():
            changes[key] = change_by_estimate(slope, level, law)
        return denoised, [changes[id(item)] for item in acting]

    def _by_x(self, denoise: guiders.Call, x: Tensor, level: float, items: list[Acting]) -> tuple[Tensor | None, dict]:
        """The estimate, None where no loss needs it here, and the gradients by x of these items' losses, by id."""
        through = [item for item in items if item.term.differentiates_model]
        denoised, slopes = self._through_model(denoise, x, level, through) if through else (None, {})
        return denoised, slopes | self._slopes([item for item in items if item.term.loss.noisy], x, level)

    def _slopes(self, items: list[Acting], latent: Tensor, level: float) -> dict[int, Tensor]:
        """The gradients by this latent of these items' losses, by id."""
        slopes = gradients_of(self.terms[-1].node, [item.loss for item in items], latent, level)
        return dict(zip(map(id, items), slopes, strict=True))

    def _through_model(
        self, denoise: guiders.Call, x: Tensor, level: float, through: list[Acting]
    ) -> tuple[Tensor, dict]:
        """The estimate, and the gradients by x of the losses that are differentiated through the model."""
        with gradients():
            model = self.models.model
            assert model is not None  # there is one, since a term goes through it
            x, options = x.detach().clone().requires_grad_(), model.options(denoise.options)
            denoised = model(lambda: denoise(x, options=options))
            if not denoised.requires_grad:
                raise ValueError(
                    f"{through[0].term.node}: a patch on the model cuts its estimate off from x, so there is no "
                    "gradient through it; turn through_model off"
                )
            slopes = self._slopes(through, denoised, level)
            for index, (key, slope) in enumerate(slopes.items()):
                progress.stop_if_interrupted()
                # a model in half precision loses small gradients: it gets one of unit size, which is undone after
                size = slope.abs().amax(tuple(range(1, slope.ndim)), keepdim=True).clamp(min=1e-30)
                (slope,) = torch.autograd.grad(denoised, x, slope / size, retain_graph=index + 1 < len(through))
                slopes[key] = finite(through[0].term.node, slope * size)
            return denoised.detach(), slopes


def of_target(change: Tensor) -> Tensor:
    """The change of an edit's target alone: its source is what the picture shows."""
    source, target = change.chunk(2)
    return torch.cat([torch.zeros_like(source), target])


def at_level(model_options: dict, sigma: float) -> dict:
    """The model options for calls with x at this level, while prompts, hooks and patches act as at the run's level."""
    previous = model_options.get("model_function_wrapper")

    def wrapper(apply_model, args):
        args = {**args, "timestep": torch.full_like(args["timestep"], sigma)}
        return previous(apply_model, args) if previous else apply_model(args["input"], args["timestep"], **args["c"])

    return {**model_options, "model_function_wrapper": wrapper}
