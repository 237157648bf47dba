"""Models of real size for the gpu tier, or small ones on a CPU, and how far results may be apart."""

from dataclasses import replace

import torch
from steer.bench.large_models import Bench, judge, on_cpu, sized, ways
from steer.lab.comfy.runs import with_pytorch_attention
from steer.lab.models import stock

STEPS = 2
HALVES = torch.float16, torch.bfloat16


def bench_of(dtype: torch.dtype, attention: bool = False) -> Bench:
    """SD1.5 with weights of the type, sampled at 64x64 latents; `attention` is PyTorch's own."""
    kind, side = sized("SD1.5", 512)
    bench = Bench(replace(kind, dtype=dtype), side, STEPS)
    if attention:
        bench.model = with_pytorch_attention(bench.model)
        bench.guider.model_patcher, bench.guider.model_options = bench.model, bench.model.model_options
    return bench


def runs_of(bench: Bench) -> dict:
    """What is run, by name: functions without arguments. CLIP and its VAE are of float32 in all."""
    judges = [("decoder and CLIP", judge(), True)] if bench.kind.judged else []
    return {name: once for name, (once, _) in ways(bench, stock.load()[1], judges).items()}


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """The root of the mean square difference, over that of b."""
    a, b = a.float(), b.float()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def rounding(dtype: torch.dtype, name: str = "") -> float:
    """What rounding may do to the result of that name, as `off` counts.

    Layers add up errors of half an eps each like a random walk, to some eps of an estimate. Guidance at 7.5 weighs two
    estimates by 7.5 and 6.5 and makes about ten times that of it, of which a tenth is left: so small is the models'
    last layer (`random_model`). Adam's first steps read the signs of gradients, of rounding's too.
    """
    return (50 if name.startswith("Null-Text") else 10) * torch.finfo(dtype).eps


REAL = not on_cpu()
