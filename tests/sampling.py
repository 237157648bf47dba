"""All that the host samples with: its samplers, schedulers and ModelSamplings, found in the host itself."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import comfy.model_base
import comfy_extras
from comfy.model_sampling import CONST

from ..lab.comfy.runs import of_host
from .host_models import EPS, FLOW

SAMPLERS, SCHEDULERS, SAMPLINGS = "Samplers", "Schedulers", "ModelSamplings"
SETTINGS = {"steps": 8, "noise_scale": 2.0, "sigmas": "0.9, 0.7, 0.5, 0.3, 0.1, 0",
            "upscale_method": "bilinear"}  # fmt: skip
# all else is left at its default; bislerp leaves another order in memory, in which its sampler then draws noise
CHOICES = {"sampler_name", "scheduler", "solver_type", "version", "model_type", "sampling", "zsnr"}  # a row for each
LISTS = {"KSamplerSelect", "BasicScheduler"}  # whose choices are known by their own names


@dataclass(frozen=True)
class Row:
    """A way to sample: a node of the host and its choice, or what models bring along."""

    table: str
    name: str
    law: str
    """Of the model; empty where the row sets it itself."""
    make: Callable
    """Called with a model: the SAMPLER, the SIGMAS or the MODEL."""

    def __str__(self) -> str:
        return f"{self.name} {self.law}".strip()


def every_row() -> list[Row]:
    both = [(table, output, law) for table, output in ((SAMPLERS, "SAMPLER"), (SCHEDULERS, "SIGMAS"))
            for law in (EPS, FLOW)]  # fmt: skip
    rows = [Row(table, name, law, make) for table, output, law in both for name, make in ways(output)]
    rows += [Row(SAMPLINGS, name, "", make) for name, make in ways("MODEL")]
    kinds = comfy.model_base.ModelType
    return rows + [Row(SAMPLINGS, f"models of type {kind.name}", "", partial(of_type, kind)) for kind in kinds]


def ways(output: str) -> Iterator[tuple[str, Callable]]:
    """(name, call with a model) of each node of the host with this output and each of its choices."""
    for node in sorted(nodes_with(output), key=lambda node: node.__name__ not in LISTS):
        inputs = {name: spec for part in node.INPUT_TYPES().values() for name, spec in part.items()}
        if ("SIGMAS",) == inputs.get("sigmas", ())[:1]:
            continue  # what reworks a schedule is none itself
        chosen = [name for name in inputs if name in CHOICES]
        for values in product(*(options(inputs[name]) for name in chosen)):
            words = [name if value is True else value for name, value in zip(chosen, values, strict=True) if value]
            name = " ".join(words if node.__name__ in LISTS else [node.__name__, *words])
            yield name, partial(called, node, inputs, dict(zip(chosen, values, strict=True)))


def nodes_with(output: str) -> Iterator[type]:
    """The host's nodes with this output; of those that give a model, the ones that set how it is sampled."""
    for path in sorted(Path(next(iter(comfy_extras.__path__))).glob("nodes_*.py")):
        text = path.read_text()
        if not any(form in text for form in (f"{output.capitalize()}.Output(", f'("{output}",', f"IO.{output},")):
            continue
        if output == "MODEL" and RESAMPLES not in text:
            continue
        module = importlib.import_module(f"comfy_extras.{path.stem}")
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and hasattr(kind, "INPUT_TYPES"):
                if output in kind.RETURN_TYPES and (output != "MODEL" or resamples(kind)):
                    yield kind


RESAMPLES = 'add_object_patch("model_sampling"'


def resamples(node: type) -> bool:
    return any(RESAMPLES in inspect.getsource(kind) for kind in node.__mro__ if kind.__module__ == node.__module__)


def options(spec: tuple) -> list:
    """Of a choice, in the host's new form or its old."""
    if spec[0] == "BOOLEAN":
        return [False, True]
    return spec[1]["options"] if len(spec) > 1 and "options" in spec[1] else spec[0]


def called(node: type, inputs: dict, chosen: dict, model):
    """What the node gives for this model."""
    defaults = {name: spec[1].get("default") if len(spec) > 1 else None for name, spec in inputs.items()}
    choices = {
        name: options(spec)[0] for name, spec in inputs.items() if spec[0] == "COMBO" or isinstance(spec[0], list)
    }
    given = {**defaults, **choices, **SETTINGS, **chosen, "model": model}
    return of_host(node, *(given[name] for name in inputs))


def of_type(kind, model):
    """The model sampled as the host samples those of this type."""
    model = model.clone()
    model.add_object_patch("model_sampling", comfy.model_base.model_sampling(model.model.model_config, kind))
    return model


def planted(model, look: Callable[[int], None], variance: float = 0.5):
    """A clone whose estimate is that of N(mean of the conditioning, variance), whatever it is sampled with.

    Each call first calls `look(rows)`.
    """
    sampling = model.get_model_object("model_sampling")
    flow, scale = isinstance(sampling, CONST), getattr(sampling, "noise_scale", 1.0)

    def wrapper(apply_model, args):
        look(args["input"].shape[0])
        x, sigma = args["input"], args["timestep"].reshape(-1, *[1] * (args["input"].ndim - 1))
        mean = args["c"]["c_crossattn"].to(x.device).mean((1, 2)).reshape(sigma.shape)
        alpha, std = 1.0 - sigma if flow else 1.0, scale * sigma if flow else sigma
        return mean + alpha * variance / (alpha**2 * variance + std**2) * (x - alpha * mean)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model
