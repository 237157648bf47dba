"""Host models whose answer is known in closed form, and what is added to one: a LoRA, a ControlNet, noise masks."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import node_helpers
import torch

from ..lab.models.shapes_unet.loader import UNET_CONFIG

ON_GPU = not comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device())
"""Where what autograd adds up comes in any order, so that the same gradient twice is the same up to rounding."""
FLOW = "flow"
EPS = "eps"
V = "v"


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


class _Depth(torch.nn.Module):
    """A depth network in the form of the host's: disparity is 0.5 and the gray, very blue is the sky."""

    has_sky = True

    def __init__(self):
        super().__init__()
        self.gray = comfy.ops.manual_cast.Conv2d(3, 1, 1)
        self.requires_grad_(False)
        self.gray.weight.copy_(torch.tensor([0.3, 0.6, 0.1])[None, :, None, None])
        self.gray.bias.fill_(0.5)

    def forward(self, x):
        mean, std = (
            torch.tensor(values, device=x.device)[:, None, None]
            for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        pixels = x * std + mean
        return {"depth": 1.0 / self.gray(pixels)[:, 0], "sky": (pixels[:, 2] - pixels[:, 0] > 0.7).float()}


def planted_depth():
    """A DA3_MODEL whose depth is known."""
    network = torch.nn.ModuleDict({"diffusion_model": _Depth()})
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(network, management.get_torch_device(), management.unet_offload_device())
