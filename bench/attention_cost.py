"""What Prompt-to-Prompt costs at the size of SD1.5 (random weights): plain sampling, ours, and as it was published."""

import gc
import statistics
import time
from functools import partial
from itertools import accumulate

import comfy.samplers
import comfy.supported_models
import torch
from torch.profiler import ProfilerActivity, profile

from ..lab.comfy import runs
from ..lab.comfy.random_models import random_model
from ..lab.comfy.runs import host_guider, noise_of, with_pytorch_attention
from ..lab.models import stock
from ..lab.world.metrics import markdown_table
from ..nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from . import published_prompt_to_prompt

EULER = comfy.samplers.sampler_object("euler")
SIDE, CFG, ENDS = 64, 7.5, (0.8, 0.4)
SHARES = 0.25, 0.35
"""The part of the run that is sampled: all of the edit acts in it, the local blend too."""
MEMORY_STEPS = 2  # what is kept from step to step counts
TIMED_STEPS, TURNS = (10, 21) if torch.cuda.is_available() else (1, 3)
ABOUT = (
    f"SD1.5's UNet with random weights, {SIDE}x{SIDE} latents, two prompts at cfg {CFG} (4 rows in a call), the host's "
    "euler. The host alone samples the two prompts unedited; the others edit, with a local blend, where all of it "
    "acts. Attention is PyTorch's own, the host's default on GPUs (on CPUs its default takes what memory is free). "
    f"Times: medians of {TURNS} turns, in each of which every variant runs once. Memory: the most that torch's "
    f"allocator had given out at a time in a run of {MEMORY_STEPS} steps, beyond the weights."
)
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
    "adm_in_channels": None,
}


def run() -> str:
    model = sd15()
    compared = variants(model, stock.load()[1])
    levels = levels_of(model, MEMORY_STEPS)
    peaks = {name: peak_bytes(lambda run=run: run(levels)) / 2**20 for name, run in compared.items()}  # warms up, too
    seconds = {name: [] for name in compared}
    levels = levels_of(model, TIMED_STEPS)
    for turn in range(TURNS):
        for name in list(compared)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            compared[name](levels)
            seconds[name].append((time.perf_counter() - started) / TIMED_STEPS)
    return report(seconds, peaks)


def report(seconds: dict[str, list[float]], peaks: dict[str, float]) -> str:
    host, *_, ours, published = seconds
    rows = [
        {
            "": name,
            "seconds a step": f"{statistics.median(seconds[name]):.3g}",
            "time over the host's": f"{ratio(seconds[name], seconds[host]):.2f}",
            "peak MiB": f"{peaks[name]:.0f}",
            "memory over the host's": f"{peaks[name] / peaks[host]:.2f}",
        }
        for name in seconds
    ]
    return (
        f"# Cost of Prompt-to-Prompt\n\n{ABOUT}\n\n{markdown_table(rows)}\nThe published controller over ours, both "
        f"refining: {ratio(seconds[published], seconds[ours]):.2f} times the time, "
        f"{peaks[published] / peaks[ours]:.1f} times the memory."
    )


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the turns."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_bytes(run) -> int:
    """The most that torch's allocator had given out at a time beyond what was there before."""
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def levels_of(model, steps: int) -> torch.Tensor:
    sigma_of = model.get_model_object("model_sampling").percent_to_sigma
    return torch.tensor([sigma_of(float(share)) for share in torch.linspace(*SHARES, steps + 1)])


def variants(model, clip) -> dict:
    """What is compared, by name: functions that sample with the sigmas given. The first is the host alone."""
    noise = noise_of((1, 4, SIDE, SIDE))
    latent = torch.zeros_like(noise)
    source, target, empty = random_texts(3)
    edits = {
        "replace": blended(clip, "a photo of a dog on a mat", "dog", source, target),
        "refine": blended(clip, "a photo of a fluffy cat on a red mat", "cat", source, target),
    }
    host = host_guider(model, [[torch.cat([source[0][0], target[0][0]]), {}]], empty, CFG)
    replace, refine = (
        SteerPromptToPromptGuider.execute(model, *halves, empty, CFG, edit, *ENDS).args[0]
        for *halves, edit in edits.values()
    )

    def sampled(guider, rows, sigmas):
        return runs.run(guider, EULER, sigmas, noise.repeat(rows, 1, 1, 1), latent.repeat(rows, 1, 1, 1), seed=0)

    def published(sigmas):
        edit = edits["refine"][2]
        return published_prompt_to_prompt.sample(model, (source, target), empty, CFG, edit, ENDS, sigmas, noise)

    return {
        "host CFGGuider": partial(sampled, host, 2),
        "SteerPromptToPromptGuider, replace": partial(sampled, replace, 1),
        "SteerPromptToPromptGuider, refine": partial(sampled, refine, 1),
        "as published, refine": published,
    }


def sd15():
    """SD1.5's UNet in the host; its attention is PyTorch's."""
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    return with_pytorch_attention(random_model(comfy.supported_models.SD15, SD15, dtype))


def random_texts(count: int) -> list:
    generator = torch.Generator().manual_seed(1)
    return [[[torch.randn(1, 77, SD15["context_dim"], generator=generator), {}]] for _ in range(count)]


def blended(clip, target: str, word: str, *texts) -> tuple:
    """Halves of these random texts, and the edit, blended where the cat and the word are."""
    *halves, edit = SteerPromptEdit.execute(clip, "a photo of a cat on a mat", target, "auto", "").args
    halves = [[[text[0][0], half[0][1]]] for half, text in zip(halves, texts, strict=True)]
    return *halves, SteerLocalBlend.execute(edit, "cat", word, 0.3).args[0]
