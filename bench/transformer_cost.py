"""What painting and watching cost in one layer of transformers of real size (random weights), beside the host alone."""

from functools import partial
from statistics import median
from time import perf_counter, process_time

import comfy.samplers
import comfy.supported_models
import torch

from ..attention.paint_with_words import Painting, Region
from ..attention.tokens import Prompt
from ..attention.words import Stream, Token
from ..lab.comfy.random_models import random_model
from ..lab.comfy.runs import Noise, host_guider, noise_of, with_pytorch_attention
from ..lab.comfy.runs import run as sampled
from ..lab.world.metrics import markdown_table
from ..nodes.attention_maps import SteerCaptureAttention
from ..nodes.runs.paint_with_words import PaintingMark, with_painting
from .attention_cost import peak_bytes, ratio

EULER, TOKENS, TURNS = comfy.samplers.sampler_object("euler"), 512, 3
CLOCK = perf_counter if torch.cuda.is_available() else process_time  # CPU seconds, whatever else runs
LEVELS = torch.tensor([0.7, 0.0])
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 0,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 512, "in_dim": 16, "dim": 1536,
    "ffn_dim": 8960, "freq_dim": 256, "text_dim": 4096, "out_dim": 16, "num_heads": 12, "num_layers": 1,
    "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
LAYERS = {
    "Flux.1, 1024x1024": (comfy.supported_models.Flux, FLUX, (1, 16, 128, 128)),
    "Wan 2.1 1.3B, 832x480, 33 frames": (comfy.supported_models.WAN21_T2V, WAN, (1, 16, 9, 60, 104)),
}
"""Of one layer each: the host's class, its configuration, a latent."""


def run() -> str:
    tables = [f"## {name}\n\n{markdown_table(measured(*layer))}" for name, layer in LAYERS.items()]
    return (
        "# Cost of painting and watching in transformers\n\nModels of the real width with one layer, random weights, "
        f"one step at cfg 1, {TOKENS} tokens of text. Painted: four words, in a quarter of the picture each. Watched: "
        f"maps of all words. Times: medians of {TURNS} turns, in each of which every variant runs once, of a CPU those "
        "that it worked. Memory: the most that torch's allocator had given out at a time, beyond the weights. "
        "Attention is PyTorch's own.\n\n" + "\n".join(tables)
    )


def measured(kind, config: dict, shape: tuple[int, ...]) -> list[dict]:
    """A row for each variant, the host alone first."""
    compared = variants(with_pytorch_attention(random_model(kind, config, torch.float32)), shape)
    peaks = {name: peak_bytes(once) for name, once in compared.items()}  # warms up, too
    seconds = {name: [] for name in compared}
    for turn in range(TURNS):
        for name in list(compared)[:: -1 if turn % 2 else 1]:
            started = CLOCK()
            compared[name]()
            seconds[name].append(CLOCK() - started)
    host = next(iter(compared))
    return [
        {
            "": name,
            "seconds": f"{median(seconds[name]):.3g}",
            "time over the host's": f"{ratio(seconds[name], seconds[host]):.2f}",
            "peak MiB": f"{peaks[name] / 2**20:.0f}",
            "memory over the host's": f"{peaks[name] / peaks[host]:.2f}",
        }
        for name in compared
    ]


def variants(model, shape: tuple[int, ...]) -> dict:
    """What is compared, by name: functions that sample. The first is the host alone."""
    noise, text = noise_of(shape), [[noise_of((1, TOKENS, 4096), 1), {"pooled_output": noise_of((1, 768), 2)}]]
    latent = torch.zeros_like(noise)
    positive = [[text[0][0], {**text[0][1], PaintingMark.key: painting()}]]
    plain = host_guider(model, text, text, 1.0)
    painted = host_guider(with_painting(model, "bench"), positive, text, 1.0)

    def watched():
        return SteerCaptureAttention.execute(Noise(noise, 0), plain, EULER, LEVELS, {"samples": latent}, 0.0, 0.0)

    return {
        "the host alone": partial(sampled, plain, EULER, LEVELS, noise, latent),
        "painted": partial(sampled, painted, EULER, LEVELS, noise, latent),
        "watched": watched,
    }


def painting() -> Painting:
    """Four words, each in a quarter."""
    words = ("one", "two", "three", "four")
    tokens = [Token(f"{word}</w>") for word in words] + [Token("rest</w>")] * (TOKENS - len(words))
    regions = []
    for number, word in enumerate(words):
        mask = torch.zeros(1, 2, 2)
        mask[0, number // 2, number % 2] = 1.0
        regions.append(Region(mask, word))
    return Painting(tuple(regions), Prompt(" ".join(words), (Stream("t5", tuple(tokens)),)), 0.4)
