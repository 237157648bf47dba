"""What the nodes of the sampling loop cost on models of real size, whether they are right there, and when offloaded.

The weights are random, so nothing is said of pictures: of what each node gives, that is compared which has to be equal.
"""

import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import comfy.model_management as management
import comfy.samplers
import comfy.supported_models as supported
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..lab.comfy import runs
from ..lab.comfy.find import FLAGS, in_host
from ..lab.comfy.random_models import random_model
from ..lab.comfy.runs import Noise, host_guider, sigmas_of
from ..lab.models import stock
from ..lab.package import ROOT
from ..lab.world.metrics import markdown_table
from ..nodes.attention_maps import SteerCaptureAttention, SteerInjectAttention
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.diffedit import SteerDiffEditMask
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.guidance import SteerCFGGuider
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.null_text import SteerNullText
from ..nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from ..nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from ..nodes.repaint import SteerRePaintSampler
from ..nodes.runs.clip_guidance import CLIPLoss
from ..nodes.trajectory_blend import SteerTrajectoryBlendSampler
from .attention_cost import SD15, peak_bytes
from .gradient_cost import Square, random_vae, random_vision

EULER = comfy.samplers.sampler_object("euler")
STEPS, TURNS, CFG, ENDS = 4, 3, 7.5, (0.8, 0.4)
SDXL = {**SD15, "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
        "context_dim": 2048, "num_head_channels": 64, "use_linear_in_transformer": True, "num_classes": "sequential",
        "adm_in_channels": 2816}  # fmt: skip
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
        "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
        "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": []}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of model with the sizes that are published, or smaller ones."""

    config: type
    unet: dict
    dtype: torch.dtype
    text: int
    pooled: int
    channels: int = 4
    cfg: float = CFG
    attends: bool = True
    """Whether the attention nodes work on it."""
    judged: bool = True
    """Whether CLIP and a VAE of real size guide it, too."""


KINDS = {
    "SD1.5": Kind(supported.SD15, SD15, torch.float16, 768, 768),
    "SDXL": Kind(supported.SDXL, SDXL, torch.float16, 2048, 1280),
    "Flux": Kind(supported.Flux, FLUX, torch.bfloat16, 4096, 768, 16, 1.0, False, False),
}
NARROW = {"model_channels": 32, "context_dim": 64, "num_head_channels": 16}
SMALL = {  # of about the same structure, to try it on a CPU
    "SD1.5": Kind(supported.SD15, {**SD15, **NARROW}, torch.float32, 64, 64, judged=False),
    "SDXL": Kind(supported.SDXL, {**SDXL, "model_channels": 64, "context_dim": 64,
                 "transformer_depth": [1, 1, 1, 1, 2, 2], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 2, 2, 2],
                 "transformer_depth_middle": 2},
                 torch.float32, 64, 1280, judged=False),
    "Flux": Kind(supported.Flux, {**FLUX, "vec_in_dim": 32, "context_in_dim": 48, "hidden_size": 64, "num_heads": 2,
                 "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12]},
                 torch.float32, 48, 32, 16, 1.0, False, False),
}  # fmt: skip
SIZES = {"Flux, 1024": ("Flux", 1024), "SDXL, 1024": ("SDXL", 1024), "SD1.5, 512": ("SD1.5", 512),
         "SD1.5, 1024": ("SD1.5", 1024)}  # fmt: skip
IN_MODES = ("SDXL", 512)
SMALL_SIDE = 128
MODES = {  # flags of the host, and GiB of the GPU's memory that are left free
    "as it starts": ("", None),
    "as it starts, 3 GiB free": ("", 3),
    "--disable-dynamic-vram": ("--disable-dynamic-vram", None),
    "--disable-dynamic-vram, 3 GiB free": ("--disable-dynamic-vram", 3),
    "--novram": ("--novram", None),
}
PARTS = ("Flux, 1024", "SDXL, 1024", "modes", "SD1.5, 512", "SD1.5, 1024")
"""In the order in which they are measured: last what was measured before."""


def on_cpu() -> bool:
    return management.is_device_cpu(management.get_torch_device())


def sized(name: str, side: int) -> tuple[Kind, int]:
    """The kind and the side of its pictures; on a CPU small ones."""
    return (SMALL[name], SMALL_SIDE) if on_cpu() else (KINDS[name], side)


class Bench:
    """A model, and what the nodes are given with it."""

    def __init__(self, kind: Kind, side: int, steps: int):
        self.kind, self.steps, self.rows = kind, steps, []
        self.model = random_model(kind.config, kind.unet, kind.dtype)
        generator = torch.Generator().manual_seed(1)
        normal = partial(torch.randn, generator=generator)
        self.positive, self.target, self.negative = (
            [[normal(1, 77, kind.text), {"pooled_output": normal(1, kind.pooled)}]] for _ in range(3)
        )
        shape = (1, kind.channels, side // 8, side // 8)
        self.noise = normal(shape)
        self.latent = {"samples": self.model.model.process_latent_out(normal(shape))}
        self.mask = torch.zeros(1, 1, *shape[2:])
        self.mask[..., shape[2] // 4 : shape[2] // 2, shape[3] // 4 : shape[3] // 2] = 1
        self.sigmas = sigmas_of(self.model, steps)
        self.guider = host_guider(self.model, self.positive, self.negative, kind.cfg)

    def sample(self, guider, sampler=EULER, mask=None, batch=1) -> Tensor:
        """From the noise, or where a mask is given from the source."""
        source = self.latent["samples"] if mask is not None else torch.zeros_like(self.noise)
        noise, source = (each.repeat(batch, 1, 1, 1) for each in (self.noise, source))
        return runs.run(guider, sampler, self.sigmas, noise, source, mask, seed=0).cpu()

    def outside(self, latent: Tensor) -> Tensor:
        return latent[(self.mask == 0).expand_as(latent)]


Way = tuple[Callable[[], Tensor], Callable[[], str]]
"""A run, and what says whether it is right."""


def ways(bench: Bench, clip, judges) -> dict[str, Way]:
    """What is run, by name. The first is the host alone, what comes with two prompts is measured by the second."""
    b = bench
    b.sample(b.guider)  # the first run is not to the last bit those that follow
    plain = b.sample(b.guider)
    two = host_guider(b.model, [[torch.cat([b.positive[0][0], b.target[0][0]]), joined(b)]], b.negative, b.kind.cfg)
    out = {
        HOST: (lambda: b.sample(b.guider), lambda: off("itself", b.sample(b.guider), plain)),
        TWO: (lambda: b.sample(two, batch=2), lambda: ""),
    }

    def add(name, run, right):
        out[name] = run, right

    for name, loss, through in (("a loss of no cost", Square(), True), *((n, j, t) for n, j, t in judges)):
        guided = partial(guided_by, b.guider, loss, through)
        add(f"Gradient Guider: {name}", lambda g=guided: b.sample(g(1e-3)),
            lambda g=guided: off("at scale 0 the host's", b.sample(g(0.0)), plain))  # fmt: skip
    repaint, blended = SteerRePaintSampler.execute(2, 2, 1.0)[0], SteerBlendedSampler.execute(EULER, 0)[0]
    for name, sampler in (("RePaint, 2 resamples", repaint), ("Blended Diffusion", blended)):
        add(name, lambda s=sampler: b.sample(b.guider, s, b.mask), lambda s=sampler: kept(b, s, b.guider))
    inversions(b, add)
    same = b.positive, b.positive
    add("DiffEdit Mask, 8 samples", lambda: diffedit(b, b.positive, b.target)[1],
        lambda: f"of the same prompt {int(diffedit(b, *same)[0].sum())} pixels")  # fmt: skip
    steer = SteerCFGGuider.execute(b.model, b.positive, b.negative, b.kind.cfg, 0.0, 1.0, 1.0)[0]
    ddim = SteerDDIMSampler.execute(0.0)[0]
    add("CFG Guider, DDIM", lambda: b.sample(steer, ddim), lambda: off("the host's", b.sample(steer, ddim), plain))
    if b.kind.attends:
        attention(b, clip, plain, two, add)
    return out


HOST, TWO = "the host alone", "the host alone, two prompts"


def attention(b: Bench, clip, plain, two, add) -> None:
    edits = {
        "replace, blend": ("a photo of a dog on a mat", ""),
        "refine, windows": ("a photo of a fluffy cat on a red mat", "fluffy: 0-0.5"),
    }
    alone = b.sample(two, batch=2)
    for name, (text, windows) in edits.items():
        *halves, edit = SteerPromptEdit.execute(clip, "a photo of a cat on a mat", text, "auto", "mat: 2", windows).args
        halves = [with_text(half, given) for half, given in zip(halves, (b.positive, b.target), strict=True)]
        whole = SteerLocalBlend.execute(edit, "cat", "cat" if windows else "dog", 0.3).args[0]

        def guider(edit, *ends, halves=halves):
            return SteerPromptToPromptGuider.execute(b.model, *halves, b.negative, b.kind.cfg, edit, *ends).args[0]

        add(f"{P2P}: {name}", lambda g=guider, e=whole: b.sample(g(e, *ENDS)),
            lambda g=guider, e=edit: off("without an end the host's", b.sample(g(e, 0.0, 0.0)), alone))  # fmt: skip
    recorded = partial(SteerCaptureAttention.execute, Noise(b.noise, 0),
                       host_guider(b.model, halves[0], b.negative, b.kind.cfg), EULER, b.sigmas,
                       {"samples": torch.zeros_like(b.noise)})  # fmt: skip
    add("Capture Attention", lambda: recorded(*ENDS).args[0]["samples"],
        lambda: off("the host's", recorded(*ENDS).args[0]["samples"], plain))  # fmt: skip
    add("Capture Attention, heatmaps alone", lambda: recorded(0.0, 0.0).args[0]["samples"],
        lambda: f"maps off 1 by {max(float((m.sum(-1) - 1).abs().max()) for m in recorded(0, 0)[1].maps.values()):.0e}"
        )  # fmt: skip
    recording = recorded(*ENDS).args[1]

    def injected():
        model = SteerInjectAttention.execute(b.model, recording, edit, *ENDS).args[0]
        return b.sample(host_guider(model, halves[1], b.negative, b.kind.cfg))

    add("Inject Attention", injected,
        lambda: off("Prompt-to-Prompt's", injected(), b.sample(guider(edit, *ENDS)).chunk(2)[1]))  # fmt: skip

    def painted(weight):
        regions = SteerRegion.execute(b.mask[0], "cat", 1.0)[0]
        model, positive = SteerPaintWithWords.execute(b.model, clip, "a photo of a cat", regions, weight).args
        return b.sample(host_guider(model, with_text(positive, b.positive), b.negative, b.kind.cfg))

    add("Paint with Words", lambda: painted(0.4), lambda: off("at weight 0 the host's", painted(0.0), plain))


P2P = "Prompt-to-Prompt Guider"


def inversions(b: Bench, add) -> None:
    guider = host_guider(b.model, b.positive, b.negative, 1.0)

    def inverted(refine):
        return SteerDDIMInversion.execute(guider, b.sigmas, b.latent, refine, 1e-4, False).args

    latent, noise, inversion = inverted(5)
    start = noise.generate_noise(latent)

    def back(sampler=EULER, mask=None, guider=guider):
        return runs.run(guider, sampler, b.sigmas, start, latent["samples"], mask, seed=0).cpu()

    for refine in (0, 5):
        add(f"DDIM Inversion, refine {refine}, cfg 1", lambda r=refine: inverted(r)[2].latents[0], lambda: "")
    blend = SteerTrajectoryBlendSampler.execute(EULER, inversion)[0]
    add("Trajectory Blend", lambda: back(blend, b.mask, b.guider),
        lambda: kept(b, blend, b.guider, back, latent["samples"]))  # fmt: skip
    if b.kind.cfg != 1.0:

        def optimised():
            return SteerNullText.execute(b.model, b.positive, b.negative, b.kind.cfg, inversion, 2, 0.01, 0.0)[0]

        def closer():
            guiders = [host_guider(b.model, b.positive, text, b.kind.cfg) for text in (optimised(), b.negative)]
            errors = [(back(guider=guider) - latent["samples"]).square().mean() for guider in guiders]
            return f"comes back {errors[0] / errors[1]:.2f} times as far off"

        add("Null-Text, 2 inner steps", lambda: torch.cat([text for text, _ in optimised()]), closer)


def diffedit(b: Bench, source, target):
    return SteerDiffEditMask.execute(b.model, source, target, b.latent, 0.5, 8, 0.5, 0).args


def joined(b: Bench) -> dict:
    return {"pooled_output": torch.cat([text[0][1]["pooled_output"] for text in (b.positive, b.target)])}


def with_text(conditioning: list, text: list) -> list:
    """What a node made of the small text encoder's conditioning, with this text for the large model."""
    return [[text[0][0], {**conditioning[0][1], "pooled_output": text[0][1]["pooled_output"]}]]


def guided_by(guider, loss, through_model, scale):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model)[0]


def off(whose: str, a: Tensor, b: Tensor) -> str:
    if torch.equal(a, b):
        return f"{whose}, bit for bit"
    return f"{whose} but for {float((a - b).abs().max() / b.abs().max()):.0e}"


def kept(b: Bench, sampler, guider, sample=None, source=None) -> str:
    """How far what the mask keeps is from the source."""
    out = sample(sampler, b.mask, guider) if sample else b.sample(guider, sampler, b.mask)
    source = b.latent["samples"] if source is None else source
    return off("the kept part the source's", b.outside(out), b.outside(source))


ABOUT = (
    "# The nodes of the sampling loop on models of real size\n\n"
    "UNets of the published sizes with random weights (activations of about unit size, and the last layer a tenth "
    f"of that), half precision, one picture, {STEPS} steps of the host's euler at cfg {CFG:g} (Flux at 1, with "
    f"guidance). Times: medians of {TURNS} runs, in turns with the host's. `rows` is how many rows of the batch the "
    "model computes, over the host's (guidance needs two a step); two prompts are compared with the host's two "
    "prompts. Memory: the most that torch had given out at a time, beyond the host's. The last column is what has to "
    "be equal, and how far it is."
)
TRIED = "\n\n**On a CPU, with small models in float32: this shows that it runs, not what it costs.**"


def run() -> str:
    *_, last = reports(PARTS)
    return last


def write(file: str, seconds: float, parts: Iterable[str]) -> None:
    """In a process of its own: what there is time for, in the file after each row."""
    with torch.inference_mode():
        for report in reports(parts, time.monotonic() + seconds):
            Path(file).write_text(report + "\n")


def reports(parts: Iterable[str], until: float = math.inf) -> Iterator[str]:
    """The report, again after each row, which names what is not measured; all, after `until` of `time.monotonic`."""
    rows, modes, left, ahead = [], "", [], list(parts)
    while ahead:
        part = ahead.pop(0)
        if time.monotonic() > until:
            left.append(part)
        elif part == "modes":
            modes = in_modes(until)
        else:
            for row in rows_of(part, until):
                (rows if len(row) > 2 else left).append(row if len(row) > 2 else f"{part}: {row['']}")
                yield report(rows, modes, [*left, f"what follows of {part}", *ahead])
        yield report(rows, modes, [*left, *ahead])


def report(rows: list[dict], modes: str, left: list[str]) -> str:
    not_measured = f"\nNot measured: {'; '.join(left)}.\n" if left else ""
    return f"{ABOUT}{TRIED if on_cpu() else ''}\n\n{markdown_table(rows) if rows else ''}{modes}{not_measured}"


def rows_of(part: str, until: float) -> Iterator[dict]:
    """A row for each way; one that fails says so, and one that there is no time for has its name alone."""
    try:
        measured = Measured(*sized(*SIZES[part]))
        for name in measured.ways:
            row = {"model": part, "": name}
            if time.monotonic() < until:
                try:
                    row |= measured.row(name)
                except (RuntimeError, ValueError, AssertionError) as error:
                    row |= dict.fromkeys(COLUMNS, "") | {"equal": failed(error)}
                print(row, flush=True)
            yield row
    except (RuntimeError, ValueError) as error:
        yield {"model": part, "": "all", **dict.fromkeys(COLUMNS, ""), "equal": failed(error)}
    measured = None
    management.unload_all_models()
    management.soft_empty_cache()


COLUMNS = "ms a step", "time", "rows", "MiB more", "equal"


def failed(error: Exception) -> str:
    return f"FAILED: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"


class Measured:
    """The ways on one model, and what they took."""

    def __init__(self, kind: Kind, side: int, steps: int = STEPS, turns: int = TURNS):
        self.bench, self.steps, self.turns, self.alone = Bench(kind, side, steps), steps, turns, {}
        judges = [("decoder and CLIP, on the estimate", False), ("decoder and CLIP", True)] if kind.judged else []
        self.ways = ways(self.bench, stock.load()[1], [(name, judge(), through) for name, through in judges])

    def row(self, name: str) -> dict:
        """A row of the table."""
        once, right = self.ways[name]
        base = TWO if name.startswith(P2P) or name == TWO else HOST
        sentence, taken = right(), took(self.bench, once)
        other, host = self.alone.setdefault(base, taken), self.ways[base][0]
        pairs = []
        for turn in range(self.turns):
            order = (once, host)[:: -1 if turn % 2 else 1]
            pairs.append([seconds(each) for each in order][:: -1 if turn % 2 else 1])
        cells = (
            f"{1000 * statistics.median(one for one, _ in pairs) / self.steps:.1f}",
            f"{statistics.median(one / two for one, two in pairs):.2f}",
            f"{taken.rows / other.rows:.2f}",
            f"{(taken.bytes - other.bytes) / 2**20:.0f}",
            sentence if taken.finite else "NOT FINITE",
        )
        return {"": name, **dict(zip(COLUMNS, cells, strict=True))}


class Taken(NamedTuple):
    """What a run took, and whether what it gave is finite."""

    rows: int
    """Of a batch, which the model computed."""
    bytes: int
    finite: bool


def took(bench: Bench, once: Callable) -> Taken:
    rows, out = [], []
    hook = bench.model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    peak = peak_bytes(lambda: out.append(once()))
    hook.remove()
    return Taken(sum(rows), peak, bool(torch.isfinite(out[0]).all()))


def judge() -> CLIPLoss:
    target = torch.randn(1, 768, generator=torch.Generator().manual_seed(2))
    return CLIPLoss(*made_once(), target, 8)


_made = []


def made_once() -> list:
    if not _made:
        _made.extend([random_vision(), random_vae()])
    return _made


def seconds(once: Callable) -> float:
    management.synchronize()
    started = time.perf_counter()
    once()
    management.synchronize()
    return time.perf_counter() - started


def in_modes(until: float = math.inf) -> str:
    """The same model in hosts that were started otherwise: each way's time, and how far its result is off."""
    rows, expected = [], None
    with tempfile.TemporaryDirectory() as folder:
        for name, (flags, free) in (TRIED_MODES if on_cpu() else MODES).items():
            done = in_mode(flags, free, Path(folder, "results.safetensors"), until)
            if done.returncode:
                rows.append(
                    {"host": name, CHOSEN[0]: f"FAILED: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"}
                )
                continue
            told, results = json.loads(done.stdout.splitlines()[-1]), load_file(Path(folder, "results.safetensors"))
            expected = expected or results
            cells = {}
            for way, (spent, peak) in told.items():
                distance = float((results[way] - expected[way]).abs().max() / expected[way].abs().max())
                cells[way] = f"{1000 * spent:.0f} ms, {peak:.1f} GiB, {distance:.0e}"
            rows.append({"host": name, **cells})
            print(rows[-1], flush=True)
    rows = [{"host": row["host"], **{way: row.get(way, "") for way in CHOSEN}} for row in rows]
    return (
        f"\n## In other modes of the host\n\n{IN_MODES[0]} at {IN_MODES[1]}: a step, the most of the GPU's memory that "
        "was taken at a time (weights too), and how far the result is from the first row's, over its largest value.\n\n"
        f"{markdown_table(rows)}"
    )


def in_mode(flags: str, free: int | None, file: Path, until: float = math.inf, name: str = IN_MODES[0]):
    """`one_mode` in a host of these flags, as a process that has ended; it failed where there was no time for it."""
    command = in_host(f"from steer.bench.large_models import one_mode; one_mode({str(file)!r}, {free}, {name!r})")
    environment = {**os.environ, FLAGS: f"{os.environ.get(FLAGS, '')} {flags}"}
    most = None if until == math.inf else max(1.0, until - time.monotonic())
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=most)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no time")


TRIED_MODES = {"as it starts": ("", None), "--disable-smart-memory": ("--disable-smart-memory", None)}
CHOSEN = (HOST, "CFG Guider, DDIM", f"{P2P}: replace, blend", "Capture Attention", "Paint with Words",
          "Gradient Guider: a loss of no cost", "Null-Text, 2 inner steps")  # fmt: skip


def one_mode(file: str, free: int | None, name: str = IN_MODES[0], side: int = IN_MODES[1], steps: int = 3) -> None:
    """In a process of its own: the chosen ways' results to a file, and told at the end of stdout what they took."""
    with torch.inference_mode():
        device = management.get_torch_device()
        beside = 0 if free is None else max(0, management.get_free_memory(device) - free * 2**30)
        ballast = torch.empty(int(beside), dtype=torch.uint8, device=device)
        told, results = {}, {}
        found = ways(Bench(*sized(name, side), steps), stock.load()[1], [])
        for name in CHOSEN:
            once = found[name][0]
            results[name] = once().float().contiguous()
            least, spent = least_free(device), []
            for _ in range(3):
                spent.append(seconds(once))
                least = min(least, least_free(device))
            told[name] = statistics.median(spent) / steps, (total(device) - least - ballast.numel()) / 2**30
        save_file(results, file)
    print("\n" + json.dumps(told))


def least_free(device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def total(device) -> int:
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
