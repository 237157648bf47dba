"""Wan's autoencoder as the host builds it, computed for all frames at once, as training wants it.

The host goes through a clip in pieces and keeps the last frames of each layer. Every layer is causal, so the whole clip
in one go gives the same.
"""

import torch
import torch.nn.functional as F
from comfy.latent_formats import Wan21
from comfy.ldm.wan.vae import CausalConv3d, ResidualBlock, RMS_norm, WanVAE
from torch import Tensor, nn

CHANNELS, WIDTH = 16, 8  # of latents, and of the network (Wan's is 96)
MOMENTUM, EPSILON = 0.02, 1e-5  # of the latents' statistics
TEMPORAL = [False, True, True]  # which of the three halvings halve the frames too


class Autoencoder(nn.Module):
    """Wan's autoencoder at a small width, whose latents have unit variance and zero mean while it learns.

    In training mode by the statistics of the batch, else by the running ones.
    """

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.vae = WanVAE(dim=width, z_dim=CHANNELS, temperal_downsample=TEMPORAL)
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("variance", torch.ones(CHANNELS))
        _initialise(self.vae)
        self.requires_grad_(True)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (n, 3, 4 t + 1, H, W) in 0..1 to normalised latents (n, CHANNELS, t + 1, H / 8, W / 8)."""
        latents = encode(self.vae, 2 * frames - 1)
        return F.batch_norm(latents, self.mean, self.variance, training=self.training, momentum=MOMENTUM, eps=EPSILON)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return (decode(self.vae, latents) + 1) / 2


def encode(vae: WanVAE, x: Tensor) -> Tensor:
    """What `WanVAE.encode` gives for frames (n, 3, 4 t + 1, H, W) in -1..1."""
    x = vae.encoder.conv1(x)
    for layer in vae.encoder.downsamples:
        x = _through(layer, x)
        if getattr(layer, "mode", "") == "downsample3d" and x.shape[2] > 1:
            x = torch.cat((x[:, :, :1], layer.time_conv(x)), 2)
    for layer in (*vae.encoder.middle, *vae.encoder.head):
        x = _through(layer, x)
    return vae.conv1(x)[:, : vae.z_dim]


def decode(vae: WanVAE, z: Tensor) -> Tensor:
    """What `WanVAE.decode` gives for latents (n, CHANNELS, t + 1, h, w)."""
    x = vae.decoder.conv1(vae.conv2(z))
    for layer in vae.decoder.middle:
        x = _through(layer, x)
    for layer in vae.decoder.upsamples:
        if getattr(layer, "mode", "") == "upsample3d" and x.shape[2] > 1:
            pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
            x = torch.cat((x[:, :, :1], torch.stack(pairs.unbind(1), 3).flatten(2, 3)), 2)
        x = _through(layer, x)
    for layer in vae.decoder.head:
        x = _through(layer, x)
    return x


@torch.no_grad()
def host_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The host's file of an `Autoencoder`'s state, fp16: latents with the mean and deviation of Wan's latent format.

    `z` normalised, `L` the host's: L = z * std + mean, put into the convolution after the encoder and undone in the one
    before the decoder; both are 1x1x1, so this is exact. The log-variance, which the host does not read, is zero.
    """
    files = {key.removeprefix("vae."): value.clone() for key, value in state.items() if key.startswith("vae.")}
    deviation = (state["variance"] + EPSILON).sqrt()
    wanted = Wan21()
    mean, std = wanted.latents_mean.flatten(), wanted.latents_std.flatten()
    into, bias = files["conv1.weight"], files["conv1.bias"]
    into[:CHANNELS] *= (std / deviation).view(-1, 1, 1, 1, 1)
    bias[:CHANNELS] = (bias[:CHANNELS] - state["mean"]) * std / deviation + mean
    into[CHANNELS:], bias[CHANNELS:] = 0, 0
    out = files["conv2.weight"] / std.view(1, -1, 1, 1, 1)
    files["conv2.bias"] -= out.flatten(1) @ mean
    files["conv2.weight"] = out
    return {key: value.half().contiguous() for key, value in files.items()}


def _through(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer gives; its norms are computed without `F.normalize`, which takes half of the time on a CPU."""
    if isinstance(layer, ResidualBlock):
        inside = x
        for part in layer.residual:
            inside = _through(part, inside)
        return inside + layer.shortcut(x)
    if isinstance(layer, RMS_norm):
        return x * (x.square().sum(1, keepdim=True) + 1e-24).rsqrt() * (layer.scale * layer.gamma)
    return layer(x)


def _initialise(vae: WanVAE) -> None:
    """The host leaves weights uninitialised, for it always loads them; residual branches start calm.

    No layer looks at earlier frames at first: those weights learn from clips, the rest can learn from pictures before.
    """
    for part in vae.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
            nn.init.kaiming_normal_(
                part.weight if isinstance(part, nn.Conv2d) else part.weight[:, :, -1:], nonlinearity="relu"
            )
    for name, part in vae.named_modules():
        if isinstance(part, CausalConv3d) and name.endswith("residual.6") or name.endswith(".proj"):
            part.weight.data *= 0.2
        if name.endswith(".time_conv"):
            part.weight.data[:, :, -1, 0, 0] = torch.eye(part.in_channels).repeat(
                part.out_channels // part.in_channels, 1
            )
    nn.init.xavier_normal_(vae.conv1.weight)
    nn.init.xavier_normal_(vae.conv2.weight)
    nn.init.xavier_normal_(vae.decoder.head[-1].weight[:, :, -1:], 0.5)
