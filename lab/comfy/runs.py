"""Running samplers in the host, loaded into this process: what tests and benchmarks share."""

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced


def encode(clip, text: str):
    """The conditioning of a text."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def encode_texts(clip, texts: list[str]):
    """One conditioning with a row for each text."""
    rows = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    pooled = [pooled for _, pooled in rows]  # which T5 has none of
    return [[torch.cat([cond for cond, _ in rows]), {} if pooled[0] is None else {"pooled_output": torch.cat(pooled)}]]


def host_guider(model, positive, negative, cfg: float):
    """The host's CFGGuider."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def noise_of(shape, seed: int = 0):
    """Standard normal noise of the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Noise:
    """A host NOISE, which gives the noise it was made with."""

    def __init__(self, noise, seed: int = 3):
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent):
        """The noise, for any latent."""
        return self.noise


def sigmas_of(model, steps: int = 20, scheduler: str = "normal"):
    """A schedule of the host's, for a full run: steps + 1 levels."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def run(guider, sampler, sigmas, noise, latent=None, mask=None, seed=3, callback=None):
    """The latent that SamplerCustomAdvanced gives, from noise of the shape of `latent`, by default zeros."""
    latent = torch.zeros_like(noise) if latent is None else latent
    out = guider.sample(noise, latent.clone(), sampler, sigmas, denoise_mask=mask, callback=callback,
                        disable_pbar=True, seed=seed)  # fmt: skip
    return out.to(comfy.model_management.intermediate_device())


def run_seeded(guider, sampler, sigmas, latent, mask=None, seed: int = 0):
    """The same from the noise of the seed."""
    return run(guider, sampler, sigmas, noise_of(latent.shape, seed), latent, mask, seed)


def of_host(kind, *args):
    """The first output of a node of the host, in its new form or its old."""
    if hasattr(kind, "define_schema"):
        output = kind.execute(*args)
        return getattr(output, "args", output)[0]
    return getattr(kind(), kind.FUNCTION)(*args)[0]


def sampled(noise, guider, sampler, sigmas, latent_image):
    """The LATENT that SamplerCustomAdvanced gives."""
    return of_host(SamplerCustomAdvanced, noise, guider, sampler, sigmas, latent_image)


def watched(model, look):
    """A clone of the model, each of whose calls first calls `look(rows)`."""

    def wrapper(apply_model, args):
        look(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def counted(model):
    """A clone of the model, and the list it appends each call's rows to."""
    rows = []
    return watched(model, rows.append), rows


def interrupted(model, call):
    """As `counted`, and the host is told to stop during this call, from 1."""
    rows = []

    def look(count):
        rows.append(count)
        if len(rows) == call:
            comfy.model_management.interrupt_current_processing()

    return watched(model, look), rows


def with_pytorch_attention(model):
    """A clone of the model with PyTorch's own attention: the host's default on GPUs, not on CPUs."""
    model = model.clone()
    options = model.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)
    return model
