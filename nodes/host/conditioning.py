"""Conditionings of the host: their marks and limits, whether two are alike, two as one, and one for each step."""

from math import inf

import comfy.controlnet
import comfy.utils
import torch
from torch import Tensor

HALF = "steer_half"
"""The key of an edit's mark: ("source" or "target", the source's text, the target's). Equal texts are the same edit."""
TEXTS = ("pooled_output", HALF)


def half_of(options: dict) -> tuple[str, ...]:
    """The mark of a conditioning; () for one that is of no edit."""
    return tuple(options.get(HALF, ()))


def whole(source: tuple[str, ...], target: tuple[str, ...]) -> tuple[str, ...]:
    """The mark of two conditionings in one: ("both", the texts) for the two halves of one edit, else ()."""
    both = (source[:1], target[:1]) == (("source",), ("target",)) and source[1:] == target[1:]
    return ("both", *source[1:]) if both else ()


def paired(source, target, batch: int) -> list:
    """Two conditionings as one, for latents of which the first `batch` are the source's, the next the target's.

    ValueError where they differ in more than their text (an area, a ControlNet, hooks): one model call takes both.
    """
    if len(source) != len(target):
        raise ValueError(
            f"source has {len(source)} conditionings and target {len(target)}; make both in the same way, "
            "one prompt each"
        )
    pairs = []
    for (a, of_a), (b, of_b) in zip(source, target, strict=True):
        for name in sorted(of_a.keys() | of_b.keys()):
            if name not in TEXTS and not _alike(of_a.get(name), of_b.get(name)):
                raise ValueError(
                    f"source and target differ in {name!r}; they run in one model call and can only differ in their "
                    "text: send both through the same nodes (one ControlNet Apply takes both as positive and negative)"
                )
        pooled = of_a.get("pooled_output"), of_b.get("pooled_output")
        for one, other in ((a, b), pooled):
            if one is not None and other is not None and one.shape[-1] != other.shape[-1]:
                raise ValueError(
                    f"source is encoded {one.shape[-1]} wide and target {other.shape[-1]}; encode both with the same "
                    "text encoder"
                )
        tokens = torch.lcm(torch.tensor(a.shape[1]), torch.tensor(b.shape[1])).item()
        text = [_rows(x.repeat(1, tokens // x.shape[1], 1), batch) for x in (a, b)]
        options = {**of_a, HALF: whole(half_of(of_a), half_of(of_b))}
        if pooled[0] is not None and pooled[1] is not None:
            options["pooled_output"] = torch.cat([_rows(x, batch) for x in pooled])
        pairs.append([torch.cat(text), options])
    return pairs


def _rows(x: Tensor, batch: int) -> Tensor:
    return comfy.utils.repeat_to_batch_size(x, batch)


def _alike(a, b) -> bool:
    """Whether two values of a conditioning do the same; ControlNets by what they hold, as each node makes its own."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, comfy.controlnet.ControlBase):
        return _alike(vars(a), vars(b))
    try:
        return bool(a == b)
    except Exception:  # what cannot be compared counts as different
        return False


def equal(a, b) -> bool:
    """Whether two conditionings are the same in all that they hold."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a is b or (type(a) is type(b) and isinstance(a, str | int | float | bool) and a == b)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a))


def check_active(conds: dict[str, list[dict]], sigma: float) -> None:
    """ValueError for a prompt that is limited to other noise levels: the host would take zero for its estimate."""
    for name, entries in conds.items():
        ranges = [(entry.get("timestep_start"), entry.get("timestep_end")) for entry in entries]
        if not any((start is None or sigma <= start) and (end is None or sigma >= end) for start, end in ranges):
            raise ValueError(
                f"{name} is limited to a part of the run, and sigma {sigma:.4g}, the level of this strength, is not in "
                "it; give it without a time range, or choose another strength"
            )


def negative_takes_over(positive, negative) -> dict:
    """The options of a single negative, with the ControlNet that the host would lend it from the positive.

    The host lends it to the first entry of the negative only, which is not enough for one that has many.
    """
    options = {name: value for name, value in negative[0][1].items() if name != HALF}  # the copy is of no edit
    lent = [of["control"] for _, of in positive if of.get("control_apply_to_uncond") and of.get("control") is not None]
    if lent and options.get("control") is None:
        options["control"] = lent[0]
    return options


TIMED = {"start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end"}


def time_limits(options: dict) -> list[str]:
    """The options that limit a conditioning to a part of the run."""
    return sorted(TIMED & options.keys())


def has_area(options: dict) -> bool:
    """Whether a conditioning is of an area, for which the host makes a second negative of its own."""
    return "area" in options or bool(options.get("set_area_to_bounds"))


def windows(embeddings: list[Tensor], sigmas: tuple[float, ...], options: dict) -> list:
    """A conditioning with an entry for each step, of which exactly one is active at any sigma.

    The entries meet midway between the steps, in log sigma, and reach from infinity to 0. The host takes a window's
    ends inclusive and compares in float32: the next window starts one float32 below the last one's end, so that a
    sampler which calls the model exactly midway (dpm_2) does not find two.
    """
    levels = torch.tensor(sigmas[:-1], dtype=torch.float64)
    cuts = (levels[:-1] * levels[1:]).sqrt().float()
    starts = [inf, *torch.nextafter(cuts, torch.zeros_like(cuts)).tolist()]
    ends = [*cuts.tolist(), 0.0]
    return [
        [embedding.cpu(), {**options, "timestep_start": start, "timestep_end": end}]
        for embedding, start, end in zip(embeddings, starts, ends, strict=True)
    ]
