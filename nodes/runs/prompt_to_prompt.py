"""Source and target sampled in lockstep by the host: one latent batch of both, one model call for both prompts."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...attention.core import Attention
from ...attention.layers import Site
from ...attention.prompt_to_prompt import (
    NOTHING_TO_BLEND,
    BlendedTarget,
    BlendMask,
    Edit,
    Timing,
    edited,
    shared_layout,
)
from ...pictures.maps import PIXELS, outlined
from ...samplers.direct_inversion import PinnedSource
from ..host import (
    Run,
    RunSampler,
    SampleCall,
    attention,
    conditioning,
    errors_of,
    guiders,
    inverted,
    lockstep,
    progress,
)
from ..schema import PICTURES, shown


class Edited:
    """The edit between the two halves of a batch, source first, in one run."""

    def __init__(self, edit: Edit, timing: Timing):
        self.edit, self.timing, self.acts = edit, timing, timing.acts

    def apply(self, rows: list[Attention], site: Site) -> list[Attention] | None:
        if site.kind == "self" and not site.policy.shares(site):
            return None
        source, target = halves_of(rows)
        if site.kind == "self":
            return [source, shared_layout(source.terms[0], target)]
        return [source, edited(source.terms, target, self.edit, self.timing.mixed(site.sigma, target.v.device))]


class Watched:
    """Adds what both halves attend to, the target's as it was edited, to the mask of a local blend."""

    def __init__(self, mask: BlendMask):
        self.mask = mask

    def acts(self, kind: str, sigma: float) -> bool:
        return kind != "self"

    def see(self, rows: list[Attention], site: Site) -> None:
        if site.policy.blends(site):
            source, target = halves_of(rows)
            self.mask.add(source.probs(), target.probs(), site.grid)


def halves_of(rows: list[Attention]) -> tuple[Attention, Attention]:
    """Source and target, in two parts already or in one."""
    return (rows[0], rows[1]) if len(rows) == 2 else rows[0].halves()


class PromptToPrompt:
    """The edit of one run, source and target in lockstep: the method, which `change`s what its sampler is answered."""

    def __init__(self, owner: "PromptToPromptGuider", sampler):
        self.owner, self.sampler, self.target = owner, sampler, BlendedTarget()

    def __call__(self, run: Run) -> Tensor:
        with run.errors():
            self._start(run)
            samples = lockstep.in_lockstep(run, self.sampler, self.change)
        mask = self.target.mask
        if mask is not None:
            progress.show_output(self.owner.shown_on, lambda: blend_output(run.model.latent_format, samples, mask))
        return run.result(self._finish(run.scaled(samples), run.levels[-1]))

    def _start(self, run: Run) -> None:
        """Everything that can be refused before the first model call."""
        edit, inversion = self.owner.edit, self.owner.inversion
        _ = run.law  # refused now, not at the end
        self._pinned = None
        if inversion is not None:
            noise = run.start_noise
            self._pinned = PinnedSource(inversion, run.levels, (noise.shape[0] // 2, *noise.shape[1:]))
            check_start(self._pinned, run)
        self._watched = BlendMask(edit.blend) if edit.blend else None
        positives = run.guider.conds["positive"]
        if self._watched and any("area" in cond for cond in positives):
            raise ValueError(
                "source and target have an area, and the local blend looks for its words in the whole picture; remove "
                "the area (a mask can stay) or the local blend"
            )
        # of prompts that were combined only the edit's own is edited
        own = [cond for cond in positives if conditioning.half_of(cond) == ("both", *texts_of(edit))]
        watching = [Watched(self._watched)] if self._watched else []
        self._edits = attention.AttentionEdits(run.model).on(own, Edited(edit, self.owner.timing), looks=watching)

    def change(self, denoise: guiders.Call, x: Tensor, level: float) -> Tensor:
        """Both halves' estimates, of the source as recorded and the target as blended."""
        source, target = x.chunk(2)
        if self._pinned:
            source = self._pinned.x(level, source)
        x = torch.cat([source, self.target.moved(source, target, level)])
        denoised, edit = denoise(x, options=self._edits.options(denoise.options)).chunk(2)
        if self._pinned:
            denoised = self._pinned.denoised(level, denoised)
        if self._watched and level in self.owner.timing.blending:
            self.target.mask = self._watched.mask(*x.shape[-2:])
        # outside the mask the target's estimate is the source's, so that multistep samplers remember the source
        return torch.cat([denoised, self.target.blend(denoised, edit)])

    def _finish(self, x: Tensor, sigma: float) -> Tensor:
        """The sampler's result: the source exactly as recorded, the target blended once more."""
        source, target = x.chunk(2)
        if self._pinned:
            source = self._pinned.x(sigma, source)
        return torch.cat([source, self.target.moved(source, target, sigma)])


def check_start(pinned: PinnedSource, run: Run) -> None:
    """ValueError for a run that does not start where the recorded source does."""
    source = run.begin().chunk(2)[0]
    expected = pinned.x(run.levels[0], source)
    if (source - expected).abs().max() > 1e-3 * expected.abs().max():
        raise ValueError(
            "the run does not start where the inversion ends; connect the NOISE and the LATENT of the same "
            "inversion to SamplerCustomAdvanced"
        )


class PromptToPromptGuider(lockstep.TwoPromptGuider):
    """Samples source and target from one latent; returns both, source first."""

    def __init__(self, node: str, model, edit: Edit, timing: Timing, cfg: float, inversion, shown_on=None):
        """`shown_on`: the id of the node that shows the local blend's last mask."""
        super().__init__(node, model)
        self.cfg, self.shown_on = cfg, shown_on
        self.edit, self.timing, self.inversion = edit, timing, inversion
        with errors_of(node):
            attention.check_pairs(model.model)
            self.policy = attention.AttentionEdits(model.model).policy
            if inversion is not None:
                inverted.check_fits(inversion, model)

    def set_prompts(self, source, target, negative, source_negative=None):
        with errors_of(self.node):
            check_halves(source, target, self.edit)
        self.prompts, self.negatives = (source, target), (source_negative, negative)

    def conds_of(self, batch: int) -> dict[str, list]:
        negative = self.negatives[1] if self.negatives[0] is None else conditioning.paired(*self.negatives, batch)
        return {"positive": conditioning.paired(*self.prompts, batch), "negative": negative}

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        # where a patch has a part in guidance, it is told of the whole batch and both conditionings, as they belong
        if self.inversion is None or guiders.patches_guide(model_options):
            return super().predict_noise(x, timestep, model_options, seed)
        # the source is pinned: it needs no unconditional prediction
        conds = lockstep.PairConds(self.conds["positive"], (None, self.conds["negative"]))
        return lockstep.guided_pair(self.inner_model, conds, (1.0, self.cfg), x, timestep, model_options)

    def prepared(self, call: SampleCall) -> tuple[object, SampleCall]:
        if self.edit.blend and not self.policy.blend_fits(call.latent_image.shape[-2:]):
            raise ValueError(NOTHING_TO_BLEND)
        if self.inversion is not None and isinstance(call.sampler, RunSampler) and call.sampler.two_prompts:
            raise ValueError(
                f"the sampler is {call.sampler.node}, which noises the source afresh, and inversion holds another one; "
                "disconnect inversion, which this sampler does not need"
            )
        return super().prepared(call)

    def method(self, sampler) -> PromptToPrompt:
        return PromptToPrompt(self, sampler)


def blend_output(latent_format, samples: Tensor, mask: Tensor) -> dict:
    """What the editor shows of a local blend: its last mask (batch, 1, h, w), over the edit."""
    size, share = tuple(PIXELS * side for side in mask.shape[-2:]), float(mask.mean())
    masks, edit = interpolate(mask[:PICTURES], size, mode="nearest")[:, 0].cpu(), samples.chunk(2)[1]
    under = progress.latent_picture(latent_format, edit, size)
    pictures = outlined(torch.ones(*masks.shape, 3) if under is None else under, masks)
    text = f"local blend: the edit could show in {100 * share:.0f}% of the picture"
    if share == 0.0:
        text += "; the words were found nowhere: lower the threshold"
    elif share == 1.0:
        text += ", so nothing was kept; raise the threshold"
    return shown(text, "" if 0.0 < share < 1.0 else text, pictures)


def texts_of(edit: Edit) -> tuple[str, str]:
    return edit.source.text, edit.target.text


def check_halves(source: list, target: list, edit: Edit) -> None:
    """ValueError unless these are the edit's halves, each in its place; others may be combined with both."""
    pair, places = texts_of(edit), {}
    for name, other, conds in (("source", "target", source), ("target", "source", target)):
        halves = [conditioning.half_of(options) for _, options in conds]
        if (other, *pair) in halves:
            raise ValueError(
                f"{name} is the edit's {other}; connect the source of SteerPromptEdit to source, its target to target"
            )
        if (name, *pair) not in halves:
            marked = [half for half in halves if half]
            origin = f"the {marked[0][0]} of another edit, from {marked[0][1]!r} to {marked[0][2]!r}" if marked else (
                "not from SteerPromptEdit (a CLIP Text Encode, perhaps)"
            )  # fmt: skip
            raise ValueError(
                f"{name} is {origin}, and edit is from {pair[0]!r} to {pair[1]!r}; connect source, target and edit of "
                "the same SteerPromptEdit"
            )
        places[name] = [index for index, half in enumerate(halves) if half == (name, *pair)]
        check_length(name, [conds[index][0] for index in places[name]], getattr(edit, name).length)
    if places["source"] != places["target"]:
        raise ValueError(
            "source and target were combined with other prompts in another order; combine both in the same one"
        )


def check_length(name: str, texts: list[Tensor], tokens: int) -> None:
    """ValueError for a half that is longer or shorter than the edit knows it."""
    for text in texts:
        if text.shape[1] != tokens:
            raise ValueError(
                f"{name} has {text.shape[1]} tokens and its edit is about {tokens}: something was joined to it "
                "(Conditioning Concat, perhaps); combine it instead"
            )
