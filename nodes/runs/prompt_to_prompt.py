"""Source and target sampled in lockstep by the host: one latent batch of both, one model call for both prompts."""

import comfy.samplers
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...attention.core import Attention, Site
from ...attention.prompt_to_prompt import (
    NOTHING_TO_BLEND,
    BlendedTarget,
    BlendMask,
    Edit,
    Timing,
    blend_fits,
    blended,
    coarse,
    edited,
    shared_queries,
)
from ...pictures.maps import PIXELS, outlined
from ...samplers.direct_inversion import PinnedSource
from ...samplers.same_noise import SameNoise
from ..host.attention.edits import Transform, edits_of
from ..host.attention.rows import with_edits, with_patches_unwatched
from ..host.attention.unet import attention_sites
from ..host.checks import check_given, check_ready, errors_of
from ..host.conditioning import half_of, paired
from ..host.law import check_inversion_fits, noise_law
from ..host.progress import latent_picture, show_output
from ..host.run import CheckedGuider, WrappedGuider
from ..schema import PICTURES, shown
from .inversion import InversionSampler


class Lockstep(Transform):
    """The edit between the two halves of a batch, source first, in one run."""

    def __init__(self, edit: Edit, timing: Timing):
        self.edit, self.timing = edit, timing

    def acts(self, cross: bool, sigma: float) -> bool:
        return self.timing.acts(cross, sigma)

    def __call__(self, rows: list[Attention], site: Site) -> list[Attention]:
        if not site.cross and not coarse(site):
            return rows
        source, target = rows if len(rows) == 2 else rows[0].halves()
        if not site.cross:
            return [source, shared_queries(source.terms[0], target)]
        return [source, edited(source.terms, target, self.edit, self.timing.mixed(site.sigma, target.v.device))]


class Watched(Transform):
    """Adds what both halves attend to, the target's as it was edited, to the mask of a local blend."""

    looks = True

    def __init__(self, mask: BlendMask):
        self.mask = mask

    def acts(self, cross: bool, sigma: float) -> bool:
        return cross

    def __call__(self, rows: list[Attention], site: Site) -> list[Attention]:
        if blended(site):
            source, target = rows if len(rows) == 2 else rows[0].halves()
            self.mask.add(source.probs(), target.probs(), site.grid)
        return rows


class LockstepGuider(WrappedGuider):
    """A guider whose attention is edited, and the halves of its batch kept together."""

    lockstep = 2  # the two halves get the same noise from Steer's samplers

    def __init__(self, guider, edit: Edit, timing: Timing, pinned: PinnedSource | None, same_noise: SameNoise):
        super().__init__(guider)
        self._blending, self._pinned, self._same_noise = timing.blending, pinned, same_noise
        self._watched = BlendMask(edit.blend) if edit.blend else None
        self.target = BlendedTarget()
        self._sites = attention_sites(guider.inner_model)
        positives = guider.conds["positive"]
        if self._watched and any("area" in cond for cond in positives):
            raise ValueError(
                "source and target have an area, and the local blend looks for its words in the whole picture; remove "
                "the area (a mask can stay) or the local blend"
            )
        # of prompts that were combined only the edit's own is edited
        own = [cond for cond in positives if half_of(cond) == ("both", *texts_of(edit))]
        watching = [Watched(self._watched)] if self._watched else []
        self._edits = edits_of(own, Lockstep(edit, timing), *watching)

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        comfy.model_management.throw_exception_if_processing_interrupted()
        level, (source, target) = float(sigma.max()), x.chunk(2)
        if self._pinned:
            source = self._pinned.x(level, source)
        x = torch.cat([source, self.target.moved(source, target, level)])
        options = with_patches_unwatched(with_edits(model_options, self._sites, self._edits))
        with self._same_noise.away():
            denoised, edit = self._guider(x, sigma, model_options=options, seed=seed).chunk(2)
        if self._pinned:
            denoised = self._pinned.denoised(level, denoised)
        if self._watched and level in self._blending:
            self.target.mask = self._watched.mask(*x.shape[-2:])
        # outside the mask the target's estimate is the source's, so that multistep samplers remember the source
        return torch.cat([denoised, self.target.blend(denoised, edit)])

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """The sampler's result: the source exactly as recorded, the target blended once more."""
        source, target = x.chunk(2)
        if self._pinned:
            source = self._pinned.x(sigma, source)
        return torch.cat([source, self.target.moved(source, target, sigma)])


class LockstepSampler(comfy.samplers.Sampler):
    """A SAMPLER on the doubled batch, with a guider that keeps the halves in lockstep."""

    def __init__(self, sampler: comfy.samplers.Sampler, owner: "PromptToPromptGuider"):
        self.sampler, self.owner = sampler, owner

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.owner.node, model_wrap)
        owner, model_sampling = self.owner, model_wrap.inner_model.model_sampling
        with errors_of(owner.node):
            check_ready(model_wrap, sigmas, latent_image, noise, denoise_mask)
            law, pinned = noise_law(model_sampling), None
            if owner.inversion is not None:
                pinned = PinnedSource(owner.inversion, sigmas.tolist(), (noise.shape[0] // 2, *noise.shape[1:]))
                top = self.max_denoise(model_wrap, sigmas)
                start = model_sampling.noise_scaling(sigmas[0], noise, latent_image, top)
                self._check_start(pinned, float(sigmas[0]), start)
            same_noise = SameNoise(noise.shape)
            guider = LockstepGuider(model_wrap, owner.edit, owner.timing, pinned, same_noise)
            with same_noise:
                samples = self.sampler.sample(
                    guider, sigmas.clone(), extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
                )
        if guider.target.mask is not None:
            latent_format = model_wrap.inner_model.latent_format
            show_output(owner.shown_on, lambda: blend_output(latent_format, samples, guider.target.mask))
        # the inner sampler's result has been taken out of the flow law's scale; the pinned source has not
        x = guider.finish(samples * law.alpha(float(sigmas[-1])), float(sigmas[-1]))
        return model_sampling.inverse_noise_scaling(sigmas[-1], x)

    @staticmethod
    def _check_start(pinned: PinnedSource, sigma: float, x: Tensor) -> None:
        source = x.chunk(2)[0]
        expected = pinned.x(sigma, source)
        if (source - expected).abs().max() > 1e-3 * expected.abs().max():
            raise ValueError(
                "the run does not start where the inversion ends; connect the NOISE and the LATENT of the same "
                "inversion to SamplerCustomAdvanced"
            )


class PromptToPromptGuider(comfy.samplers.CFGGuider):
    """Samples source and target from one latent; returns both, source first."""

    def __init__(self, node: str, model, edit: Edit, timing: Timing, cfg: float, inversion, shown_on=None):
        """`shown_on`: the id of the node that shows the local blend's last mask."""
        super().__init__(model)
        self.shown_on = shown_on
        self.node, self.edit, self.timing, self.cfg, self.inversion = node, edit, timing, cfg, inversion
        with errors_of(node):
            attention_sites(model.model)
            if inversion is not None:
                check_inversion_fits(inversion, model)

    def set_prompts(self, source, target, negative, source_negative=None):
        with errors_of(self.node):
            check_halves(source, target, self.edit)
        self.prompts, self.negatives = (source, target), (source_negative, negative)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        with errors_of(self.node):
            self._check(latent_image, sampler, sigmas, denoise_mask)
            batch = latent_image.shape[0]
            positive, negative = paired(*self.prompts, batch), self.negatives[1]
            if self.negatives[0] is not None:
                negative = paired(*self.negatives, batch)
            self.set_conds(positive, negative)
        noise, latent_image = (torch.cat([x, x]) for x in (noise, latent_image))
        if denoise_mask is not None and denoise_mask.ndim > 2 and denoise_mask.shape[0] == batch > 1:
            denoise_mask = torch.cat([denoise_mask, denoise_mask])
        try:
            return super().sample(
                noise, latent_image, LockstepSampler(sampler, self), sigmas, denoise_mask, *args, **kwargs
            )
        finally:
            self.original_conds = {}

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        # where a patch looks at positive and negative in one call (as NAG's), they stay together
        if self.inversion is None or model_options.get("disable_cfg1_optimization", False):
            return super().predict_noise(x, timestep, model_options, seed)
        # the source is pinned: it needs no unconditional prediction
        positive, negative = self.conds["positive"], self.conds["negative"]
        both = comfy.samplers.calc_cond_batch(self.inner_model, [positive], x, timestep, model_options)[0]
        (source, cond), target, level = both.chunk(2), x.chunk(2)[1], timestep.chunk(2)[1]
        if self.cfg == 1.0:
            return both
        comfy.model_management.throw_exception_if_processing_interrupted()
        _, uncond = comfy.samplers.calc_cond_batch(self.inner_model, [None, negative], target, level, model_options)
        guided = comfy.samplers.cfg_function(
            self.inner_model, cond, uncond, self.cfg, target, level, model_options, positive, negative
        )
        return torch.cat([source, guided])

    def _check(self, latent_image, sampler, sigmas, denoise_mask) -> None:
        while hasattr(sampler, "sampler"):  # round another one
            sampler = sampler.sampler
        if isinstance(sampler, InversionSampler):
            raise ValueError(
                "this guider samples two prompts; invert with a plain guider at cfg 1 and the source prompt"
            )
        check_given(self.model_patcher.model, sigmas, latent_image, denoise_mask)
        if self.edit.blend and not blend_fits(*latent_image.shape[-2:]):
            raise ValueError(NOTHING_TO_BLEND)


def blend_output(latent_format, samples: Tensor, mask: Tensor) -> dict:
    """What the editor shows of a local blend: its last mask (batch, 1, h, w), over the edit."""
    size, share = tuple(PIXELS * side for side in mask.shape[-2:]), float(mask.mean())
    masks, edit = interpolate(mask[:PICTURES], size, mode="nearest")[:, 0].cpu(), samples.chunk(2)[1]
    under = latent_picture(latent_format, edit, size)
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
        halves = [half_of(options) for _, options in conds]
        if (other, *pair) in halves:
            raise ValueError(
                f"{name} is the edit's {other}; connect the source of SteerPromptEdit to source, its target to target"
            )
        if (name, *pair) not in halves:
            marked = [half for half in halves if half]
            found = f"the {marked[0][0]} of another edit, from {marked[0][1]!r} to {marked[0][2]!r}" if marked else (
                "not from SteerPromptEdit (a CLIP Text Encode, perhaps)"
            )  # fmt: skip
            raise ValueError(
                f"{name} is {found}, and edit is from {pair[0]!r} to {pair[1]!r}; connect source, target and edit of "
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
