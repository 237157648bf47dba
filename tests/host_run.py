"""Running samplers on host models in-process: the shapes model, and models whose answer is known in closed form."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy.supported_models
import node_helpers
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

from ..lab.models.shapes_unet.loader import UNET_CONFIG

ON_GPU = not comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device())
"""Where what autograd adds up comes in any order, so that the same gradient twice is the same up to rounding."""
FLOW = "flow"
EPS = "eps"
V = "v"


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def host_guider(model, positive, negative, cfg):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def noise_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Noise:
    """A host NOISE, which gives the noise it was made with."""

    seed = 3

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def sigmas_of(model, steps=20):
    """The host's own schedule of a full run."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def hole(batch=1, height=16, width=16):
    """A noise mask with another hole for each picture of the batch."""
    mask = torch.zeros(batch, 1, height, width)
    for item in range(batch):
        mask[item, :, 4 : 9 + item, 3 + 2 * item : 10] = 1
    return mask


def relative(a, b):
    """The largest difference, as a share of the largest value of b."""
    return float((a - b).abs().max() / b.abs().max())


def free_memory(count):
    """The host's `get_free_memory` where `count()` bytes are free."""
    return lambda device=None, torch_free_too=False: (count(), count()) if torch_free_too else count()


def again(a, b):
    """Whether a result with gradients in it is another one's repetition: bit for bit, but on a GPU up to rounding."""
    return relative(a, b) < 1e-4 if ON_GPU else torch.equal(a, b)


def run(guider, sampler, sigmas, noise, latent=None, mask=None, seed=3, callback=None):
    """As SamplerCustomAdvanced runs it."""
    latent = torch.zeros_like(noise) if latent is None else latent
    out = guider.sample(noise, latent.clone(), sampler, sigmas, denoise_mask=mask, callback=callback,
                        disable_pbar=True, seed=seed)  # fmt: skip
    return out.to(comfy.model_management.intermediate_device())


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


def split_rows(monkeypatch, model, split):
    """Makes the host run conditionings one by one, or together."""
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30 if split else 1.0)


def for_shape(monkeypatch, model, shape):
    """The model, which from now on counts as one of latents of these dimensions: of pictures, or of videos."""
    monkeypatch.setattr(model.model.latent_format, "latent_dimensions", len(shape) - 2)
    return model


def with_law(model, law):
    """A clone of the model sampled with the law (the weights stay what they are)."""
    kinds = {
        EPS: (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS),
        V: (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION),
        FLOW: (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST),
    }
    model = model.clone()
    model.add_object_patch("model_sampling", type("ModelSampling", kinds[law], {})(model.model.model_config))
    return model


def closed_form(model, law, variance=0.5):
    """A clone whose estimate is that of N(mean of the conditioning, variance) in every latent value."""
    model = with_law(model, law)

    def wrapper(apply_model, args):
        x, sigma = args["input"], args["timestep"].reshape(-1, *[1] * (args["input"].ndim - 1))
        mean = args["c"]["c_crossattn"].to(x.device).mean((1, 2)).reshape(sigma.shape)
        alpha = 1.0 - sigma if law == FLOW else 1.0
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def two_modes(model, law, mean, variance=0.02):
    """A clone whose estimate is that of an even mixture of N(mean, variance) and N(-mean, variance)."""
    model = with_law(model, law)

    def wrapper(apply_model, args):
        x, sigma = args["input"], args["timestep"].reshape(-1, *[1] * (args["input"].ndim - 1))
        alpha = 1.0 - sigma if law == FLOW else 1.0
        spread = alpha**2 * variance + sigma**2
        there = mean.to(x.device)
        odds = (2.0 * alpha * (x * there) / spread).flatten(1).sum(1).reshape(sigma.shape)
        centre = torch.tanh(0.5 * odds) * there
        return centre + alpha * variance / spread * (x - alpha * centre)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def mean_conditioning(mean):
    """A conditioning whose closed-form estimate has this mean."""
    return [[torch.full((1, 77, 128), float(mean)), {}]]


def with_lora(model):
    """A clone with a rank-1 change of every query projection."""
    model = model.clone()
    patches = {}
    for key, weight in model.model.state_dict().items():
        if key.endswith("to_q.weight"):
            generator = torch.Generator().manual_seed(len(patches))
            change = torch.randn(weight.shape[0], 1, generator=generator) @ torch.randn(
                1, weight.shape[1], generator=generator
            )
            patches[key] = (0.02 * change,)
    assert model.add_patches(patches, 0.5)
    return model


def with_control(conditioning):
    """The conditioning with a small random ControlNet."""
    config = {key: UNET_CONFIG[key] for key in ("image_size", "in_channels", "model_channels", "channel_mult",
              "num_res_blocks", "transformer_depth", "transformer_depth_middle", "context_dim", "num_heads",
              "num_head_channels", "use_spatial_transformer", "legacy")}  # fmt: skip
    torch.manual_seed(0)
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, operations=comfy.ops.manual_cast, dtype=torch.float32
    )
    for weight in network.parameters():
        weight.copy_(torch.randn_like(weight) * 0.03)
    control = comfy.controlnet.ControlNet(
        network, load_device=comfy.model_management.get_torch_device(), manual_cast_dtype=None
    )
    control = control.copy().set_cond_hint(torch.rand(1, 3, 128, 128), 0.5, (0.0, 1.0))
    return node_helpers.conditioning_set_values(conditioning, {"control": control, "control_apply_to_uncond": True})


def random_kl(channels=32, dtype=None, seed=0, latent=4):
    """A VAE of SD1.x's structure with random weights, which are of that size at 128 channels."""
    layers = {"double_z": True, "z_channels": latent, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": channels,
              "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    config, generator, weights = {"ddconfig": layers, "embed_dim": latent}, torch.Generator().manual_seed(seed), {}
    for name, weight in AutoencoderKL(**config).state_dict().items():
        drawn = torch.randn(weight.shape, generator=generator)
        drawn = 0.1 * drawn if weight.ndim == 1 else drawn * weight[0].numel() ** -0.5
        weights[name] = 1.0 + drawn if "norm" in name and name.endswith("weight") else drawn
    vae = comfy.sd.VAE(sd=weights, config={"params": config}, dtype=dtype)
    vae.latent_channels = latent  # which the host reads off the weights only where it has no configuration
    return vae


def tiny_sdxl(seed=0):
    """A model of SDXL's structure (pooled text and sizes, two transformers a block) with random weights."""
    return tiny_model(
        comfy.supported_models.SDXL,
        {**UNET_CONFIG, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
         "transformer_depth_middle": 2, "use_linear_in_transformer": True, "num_classes": "sequential",
         "adm_in_channels": 2816},
        seed=seed,
    )  # fmt: skip


def tiny_flux(seed=0):
    """A model of Flux's structure (blocks that add to what they are given in place) with random weights."""
    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    return tiny_model(
        comfy.supported_models.Flux,
        {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48,
         "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
         "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, **newer},
        seed=seed,
    )  # fmt: skip


def tiny_model(kind, unet_config, weights=None, seed=0):
    """A model of one of the host's kinds with random weights; `weights` is what the host tells its noise law by."""
    config = kind(unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights or {}, "")
    random_weights(model.diffusion_model, seed)
    management = comfy.model_management
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)  # newer hosts
    return patcher(model.eval(), management.get_torch_device(), management.unet_offload_device())


def random_weights(module, seed):
    """Draws the module's weights, so that what goes through it keeps its size."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.state_dict().items():
        drawn = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim < 2 else weight[0].numel() ** -0.5)
        weight.copy_(1.0 + 0.1 * drawn if "norm" in name and name.endswith("weight") else drawn)
