"""What the nodes' oracles share: guiders, latents, masks and edits of a family of models. See `matrices.py`."""

from functools import cache
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import nodes
import torch

from ..lab.comfy.runs import host_guider, noise_of, run, sigmas_of
from ..nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from ..nodes.host import Differentiable
from ..nodes.host.law import noise_law
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.prompt_to_prompt import SteerPromptEdit
from ..nodes.sdedit import SteerSDEditSigmas
from ..samplers.core import SampleNoise
from .families import FAMILIES, Family
from .host_models import relative

SOURCE, TARGET = "a red circle on a mat", "a green circle on a mat"
EULER = comfy.samplers.sampler_object("euler")


def guider_of(family: Family, cfg=1.0, text=SOURCE, model=None):
    """The host's, with an empty negative."""
    return host_guider(model or family.model(), family.prompt(text), family.prompt(""), cfg)


def from_level(family: Family, steps=4):
    """Sigmas of a part of the way, where random weights are tame."""
    return SteerSDEditSigmas.execute(family.model(), "normal", steps, 0.2)[0]


def noise_for(family: Family, seed=1):
    return noise_of(family.shape, seed)


def mask_of(family: Family):
    mask = torch.zeros(1, 1, *family.shape[-2:])
    mask[..., 2:6, 1:5] = 1
    return mask


def outside(family: Family, latent):
    """The values of a latent where the mask is 0."""
    mask = mask_of(family) if latent.ndim == 4 else mask_of(family)[:, :, None]
    return latent[(mask == 0).expand(latent.shape)]


def estimate(guider, family: Family, sigma=1.0):
    """D at one level: the result of one step from it to 0."""
    sigma = min(sigma, 0.7) if noise_law(guider.model_patcher.get_model_object("model_sampling")).flow else sigma
    return run(guider, EULER, torch.tensor([sigma, 0.0]), noise_for(family), family.picture())


def alone(family: Family, positive, model=None):
    """The latent sampled with this positive, not edited."""
    guider = host_guider(model or family.model(), positive, family.prompt(""), 3.0)
    return run(guider, EULER, sigmas_of(family.model(), 4), noise_for(family))


@cache
def inversion_of(family: Family):
    """(latent, noise, inversion) of the family's picture, and the sigmas."""
    with torch.inference_mode():
        sigmas = from_level(family)
        out = SteerDDIMInversion.execute(guider_of(family), sigmas, {"samples": family.picture()}, 40, 1e-5, False)
        return *out.args, sigmas


def edit_of(family: Family):
    """(source, target, edit) of the two prompts. ValueError where the family's text encoder has no edit."""
    source, target, edit = SteerPromptEdit.execute(family.clip(), SOURCE, TARGET, "auto", "").args
    return family.joined(source, family.picture()), family.joined(target, family.picture()), edit


def prompts_for_attention(family: Family):
    """The family's own edit, or where its encoder has none an SD1.x one: the model's own limit is what is to be met."""
    try:
        return edit_of(family)
    except ValueError:
        return family.prompt(SOURCE), family.prompt(TARGET), edit_of(FAMILIES[0])[2]


@cache
def background(family: Family):
    """(the source, an edit's latent, the edit decoded, the mask)"""
    with torch.inference_mode():
        source, edited = (
            nodes.VAEDecode().decode(family.vae(), {"samples": 0.3 * latent})[0]
            for latent in (family.picture(), noise_for(family))
        )
        mask = torch.zeros(1, 64, 64)
        mask[:, 16:48, 16:40] = 1
        return source, 0.3 * noise_for(family), edited, mask


def background_error(picture, family: Family):
    """How far a picture is from the source outside the mask."""
    source, _, _, mask = background(family)
    return float(((picture - source) * (1 - mask)[..., None]).square().mean())


class Once(comfy.samplers.Sampler):
    """A SAMPLER that gives its guider's estimate at the first level, of the latent with this noise."""

    def __init__(self, noise):
        self.noise = noise

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=0):
        law = noise_law(guider.inner_model.model_sampling)
        x = law.noised(latent_image, float(sigmas[0]), self.noise)
        return guider(x, sigmas[:1].expand(len(x)), **extra_args)


def check_edit_guider(make, latent, sigma, source_cfg, target_cfg, tolerance=1e-4):
    """One step to 0 is the source and what the host's estimates differ by, each at its own scale.

    `make()` gives (model, source, target, negative), anew each time: hooks and patches may keep count. At scale 1 there
    is no guidance, so the host's estimate is without the patches that change it beforehand.
    """
    model, *_ = make()
    inside, sigmas = model.model.process_latent_in(latent), torch.tensor([sigma, 0.0])
    drawn, zero = SampleNoise(3, "edit", torch.zeros_like(inside), inside)(inside), torch.zeros_like(latent)
    estimates = []
    for which, cfg in ((0, source_cfg), (1, target_cfg)):
        model, *prompts, negative = make()
        if cfg == 1.0:
            model.model_options.pop("sampler_pre_cfg_function", None)
        estimates.append(run(host_guider(model, prompts[which], negative, cfg), Once(drawn), sigmas, zero, latent))
    model, source, target, negative = make()
    guider = SteerEditGuider.execute(model, source, target, source_cfg, target_cfg, negative)[0]
    out = run(guider, SteerDirectEditSampler.execute(0.0, 0.0, 1)[0], sigmas, zero, latent)
    assert relative(out, latent + estimates[1] - estimates[0]) < tolerance
    assert relative(out, latent) > 1e-4


def started(shapes, loss, latent, mask=None):
    """A loss in a run on the shapes' latents, its models loaded; the same draws each time it is started."""
    models = {id(patcher): Differentiable(patcher) for patcher in loss.patchers}
    comfy.model_management.load_models_gpu([each.patcher for each in models.values()])
    noise = lambda stream: SampleNoise(0, stream, latent, latent)  # noqa: E731
    run = SimpleNamespace(known=latent, mask=mask, noise=noise)
    return loss.start(run, shapes[0].model.latent_format, lambda patcher: models[id(patcher)])
