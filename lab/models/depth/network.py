"""The sizes of the depth network: MoGe 2 as the host has it, told from a file by the shapes of its tensors."""

import torch
from comfy.ldm.moge.model import MoGeModelV2
from torch import nn

WIDTH, LAYERS = 128, 4
LEVELS = (48, 32, 24, 16)  # channels; the first is of the patches, each next one twice as fine
HEAD = 16
PICTURE = 140  # pixels that it was trained at, both ways: ten patches of 14
TOKENS = (PICTURE // 14) ** 2


def trainable() -> MoGeModelV2:
    """A network to be trained, with weights as PyTorch draws them."""
    levels = len(LEVELS)
    backbone = {"hidden_size": WIDTH, "num_attention_heads": WIDTH // 64, "num_hidden_layers": LAYERS,
                "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}  # fmt: skip
    norms = {"res_block_in_norm": "layer_norm", "res_block_hidden_norm": "group_norm"}
    plain = {"res_block_in_norm": "none", "res_block_hidden_norm": "none"}
    neck = {"dim_in": [LEVELS[0] + 2, *[2] * (levels - 1)], "dim_res_blocks": list(LEVELS), "dim_out": [None] * levels,
            "resamplers": ["bilinear"] * (levels - 1), "num_res_blocks": [1] * levels, **norms}  # fmt: skip
    points = {"dim_in": list(LEVELS), "dim_res_blocks": [HEAD] * levels, "dim_out": [None] * (levels - 1) + [3],
              "resamplers": ["bilinear"] * (levels - 1), "num_res_blocks": [0] * levels, **plain}  # fmt: skip
    mask = {"dim_in": [LEVELS[0]], "dim_res_blocks": [4], "dim_out": [1], "resamplers": [], "num_res_blocks": [0],
            **plain}  # fmt: skip
    network = MoGeModelV2(
        {"backbone": backbone, "intermediate_layers": list(range(LAYERS)), "dim_out": LEVELS[0]},
        neck, points, mask, {"dims": [WIDTH, 1]}, dtype=torch.float32, operations=nn,
    )  # fmt: skip
    _begin(network)
    return network


def _begin(network: MoGeModelV2) -> None:
    """What PyTorch draws no weights for; everything is known, and the distance is in the world's own unit."""
    embeddings = network.encoder.backbone.embeddings
    for name in ("position_embeddings", "cls_token", "mask_token"):
        nn.init.normal_(getattr(embeddings, name), std=0.02)
    for layer in network.encoder.backbone.encoder.layer:
        nn.init.ones_(layer.layer_scale1.lambda1)
        nn.init.ones_(layer.layer_scale2.lambda1)
    for fixed, bias in ((network.mask_head.output_blocks[0], 10.0), (network.scale_head[0], 0.0)):
        nn.init.zeros_(fixed.weight)
        nn.init.constant_(fixed.bias, bias)
