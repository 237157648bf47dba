"""Prompt-to-Prompt as its authors published it (Hertz et al. 2022, arXiv:2208.01626), restated for the host's UNets.

What ours is measured against: each attention layer makes all of its maps in float32, those up to 32 x 32 are kept and
added up over the steps, and the edits are written into the maps. Only what words become which is ours, since the
published alignment is wrong for words of several tokens, and what counts as a share of the run: noise levels, as the
host counts it, instead of steps.
"""

from functools import partial, reduce

import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.prompt_to_prompt import Edit
from ..lab.comfy import runs
from ..lab.comfy.runs import host_guider

BLOCKS = [*(("input", i) for i in range(12)), ("middle", 0), *(("output", i) for i in range(12))]


class Controller:
    """The maps of one run of a source and a target row, source first: kept, and edited in place."""

    def __init__(self, edit: Edit, sigmas: Tensor, sigma_of, cross_end: float, self_end: float):
        self.edit, self.sigma_of = edit, sigma_of
        self.alphas = {sigma: self._alpha(sigma, cross_end) for sigma in sigmas.tolist()}
        self.shares_self = {sigma: self._within(sigma, 0.0, self_end) for sigma in sigmas.tolist()}
        self.refines, self.reweights = bool((edit.kept != 1).any()), bool((edit.equalizer != 1).any())
        self.store, self.step_store = {}, {}

    def attention(self, q: Tensor, k: Tensor, v: Tensor, options: dict, cross: bool) -> Tensor:
        """One layer, as the host's replacement patch: (rows, positions, channels), the conditionings' rows in turn."""
        shape, dtype = q.shape, q.dtype
        q, k, v = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2).float() for x in (q, k, v))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        maps = logits.softmax(-1)  # (rows, heads, positions, tokens)
        if 0 in options["cond_or_uncond"]:
            first = 2 * options["cond_or_uncond"].index(0)
            rows, sigma = maps[first : first + 2], float(options["sigmas"][0])
            if rows.shape[2] <= 32**2:
                self.step_store[(*options["block"], cross)] = rows
            if cross:
                self._edit_cross(rows, self.alphas[sigma].to(rows))
            elif self.shares_self[sigma] and rows.shape[3] <= 16**2:
                rows[1] = rows[0]
        return (maps @ v).transpose(1, 2).reshape(shape).to(dtype)

    def end_step(self, x: Tensor, sigma: float) -> Tensor:
        """Adds the step's maps to the kept ones, and blends the latents after the step from this level."""
        if self.store:
            for layer, maps in self.step_store.items():
                self.store[layer] += maps
        else:
            self.store = self.step_store
        self.step_store = {}
        blend = self.edit.blend
        return self._blend(x) if blend and sigma <= self.sigma_of(blend.start) else x

    def _alpha(self, sigma: float, cross_end: float) -> Tensor:
        """(target tokens,) 1 where the source's maps are put in at this level."""
        windows = dict(self.edit.windows)
        length = self.edit.target.length
        return torch.tensor([float(self._within(sigma, *windows.get(j, (0.0, cross_end)))) for j in range(length)])

    def _within(self, sigma: float, start: float, end: float) -> bool:
        return self.sigma_of(end) < sigma <= self.sigma_of(start)

    def _edit_cross(self, rows: Tensor, alpha: Tensor) -> None:
        lengths = self.edit.source.length, self.edit.target.length
        source, target = (_folded(maps, length) for maps, length in zip(rows, lengths, strict=True))
        new = torch.einsum("hpw,wn->hpn", source, self.edit.mapper.to(rows))
        if self.refines:
            kept = self.edit.kept.to(rows)
            new = new * kept + (1 - kept) * target
        if self.reweights:
            new = new * self.edit.equalizer.to(rows)
        new = alpha * new + (1 - alpha) * target
        rows[1, ..., lengths[1] :] = 0
        rows[1, ..., : lengths[1]] = new

    def _blend(self, x: Tensor) -> Tensor:
        """Where either prompt's words are, at 16 x 16, the target; elsewhere the source."""
        blend = self.edit.blend
        layers = [m for (part, _, cross), m in self.store.items() if cross and part != "middle" and m.shape[2] == 16**2]
        maps = torch.cat(layers, 1)  # (2, layers * heads, positions, tokens)
        tokens = blend.source_tokens, blend.target_tokens
        words = torch.stack([m[..., list(of)].sum(-1).mean(0) for m, of in zip(maps, tokens, strict=True)])
        words = F.max_pool2d(words.reshape(2, 1, 16, 16), 3, stride=1, padding=1)
        words = F.interpolate(words, x.shape[-2:])
        mask = (words / words.amax((2, 3), keepdim=True) > blend.threshold).any(0, keepdim=True)
        return x[:1] + mask.to(x) * (x - x[:1])


def _folded(maps: Tensor, length: int) -> Tensor:
    """Maps over a context that was repeated, over one copy of it."""
    return reduce(torch.add, maps.split(length, -1))


def sample(model, prompts, negative, cfg: float, edit: Edit, ends: tuple[float, float], sigmas: Tensor, noise: Tensor):
    """Euler from one noise (1, channels, height, width): the source's latent, then the target's.

    `prompts`: the source's and the target's conditioning; `ends`: cross_end and self_end.
    """
    controller = Controller(edit, sigmas, model.get_model_object("model_sampling").percent_to_sigma, *ends)
    model = model.clone()
    for block in BLOCKS:
        model.set_model_attn1_replace(partial(controller.attention, cross=False), *block)
        model.set_model_attn2_replace(partial(controller.attention, cross=True), *block)
    texts = [prompt[0][0] for prompt in prompts]
    tokens = int(torch.lcm(*(torch.tensor(text.shape[1]) for text in texts)))
    both = [[torch.cat([text.repeat(1, tokens // text.shape[1], 1) for text in texts]), {}]]

    def euler(model, x, sigmas, extra_args, callback, disable):
        for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
            denoised = model(x, sigma.expand(len(x)), **extra_args)
            x = controller.end_step(x + (next_sigma - sigma) * (x - denoised) / sigma, float(sigma))
        return x

    noise = noise.repeat(2, 1, 1, 1)
    sampler = comfy.samplers.KSAMPLER(euler)
    return runs.run(host_guider(model, both, negative, cfg), sampler, sigmas, noise, seed=0)
