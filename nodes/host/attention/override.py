"""The host's attention override, of which there is one: whoever sets it chains here.

The host calls it as `override(function, q, k, v, heads, ...)`, where `function` is the back-end it would have used, and
what it returns is the layer's attention.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

KEY = "optimized_attention_override"


def chained(previous: Callable | None, function: Callable) -> Callable:
    """The function as the override that was there before has it, if there was one."""
    return function if previous is None else partial(previous, function)


def as_now(*arguments) -> Callable[[], AbstractContextManager]:
    """For a part of the network that gets these arguments and runs once more later: in what attention is as now."""
    options = (value for value in arguments if isinstance(value, dict))
    override = next((of[KEY] for of in options if KEY in of), None)
    return getattr(override, "as_now", lambda: nullcontext)()


def with_back_end(model_options: dict, back_end: Callable) -> dict:
    """The model options for calls whose attention is computed by this function of the host.

    An override that changes attention still acts, round it; one that only chooses a back-end gives way.
    """
    options = dict(model_options.get("transformer_options", {}))
    previous = options.get(KEY)
    if previous is None or "set_model_optimized_attention" in getattr(previous, "__qualname__", ""):
        options[KEY] = lambda _, *args, **kwargs: back_end(*args, **kwargs)
    else:
        options[KEY] = lambda _, *args, **kwargs: previous(back_end, *args, **kwargs)
    return {**model_options, "transformer_options": options}
