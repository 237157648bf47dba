"""The host's depth networks with gradients: Depth Anything 3 and MoGe. Older hosts have none."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SKY, NEAREST = 0.3, 1e-6
"""The host's own: above which share a pixel is sky, and the least distance."""


def is_depth_model(value) -> bool:
    """Whether it is what Load Depth Anything 3 or Load MoGe Model gives."""
    return _is_moge(value) or hasattr(_network(value), "has_sky")


def patcher_of_depth(model):
    return model.patcher if _is_moge(model) else model


def disparity(model, differentiable, pictures: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """1 / distance of pictures (batch, 3, h, w) in 0..1 at this size, whole patches of 14, and where there is any.

    Both (batch, height, width), float32; what is not valid is sky or unknown. MoGe's distances are as its network gives
    them: but for a shift, which the host finds by SciPy.
    """
    device = patcher_of_depth(model).load_device
    seen = interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)
    seen = (seen + (seen.clamp(0.0, 1.0) - seen).detach()).to(device)
    distance, valid = _moge(model, differentiable, seen) if _is_moge(model) else _da3(model, differentiable, seen)
    return 1.0 / distance.to(pictures.device).clamp(min=NEAREST), valid.detach().to(pictures.device)


def _da3(model, differentiable, pictures: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, device=pictures.device).view(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    network = model.model.diffusion_model
    pixels = ((pictures - mean) / std).to(getattr(network, "dtype", None) or torch.float32)
    out = differentiable(lambda: network(pixels))
    distance = out["depth"].float()
    return distance, out["sky"].float() < SKY if "sky" in out else torch.ones_like(distance, dtype=torch.bool)


def _moge(model, differentiable, pictures: Tensor) -> tuple[Tensor, Tensor]:
    tokens = pictures.shape[-2] * pictures.shape[-1] // 14**2
    out = differentiable(lambda: model.model(pictures, num_tokens=tokens))
    return out["points"][..., 2].float(), out["mask"] > model.mask_threshold


def _is_moge(value) -> bool:
    return all(hasattr(value, name) for name in ("patcher", "num_tokens_range", "mask_threshold"))


def _network(value):
    return getattr(getattr(value, "model", None), "diffusion_model", None)
