"""What the editor is told of nodes: in schemas, where the host knows the field, and after a run (`web/steer.js`)."""

from comfy_api.latest import io, ui
from torch import Tensor

PICTURES = 8  # shown in a node at most; each is a file in the temporary folder


def where_known(**fields) -> dict:
    """Those of the fields that this host's `io.Schema` has; none of them changes what a node computes."""
    return {name: value for name, value in fields.items() if name in io.Schema.__dataclass_fields__}


def advanced(item: io.Input) -> io.Input:
    """Marks an input that few people change: the editor folds it away. Older hosts lack the keyword."""
    item.extra_dict["advanced"] = True
    return item


def shown(text: str, warning: str = "", pictures: Tensor | None = None) -> dict:
    """What a node's output says for the editor: a text, what in it is a warning, and pictures, drawn in the node.

    Of the text the first paragraph is what is drawn, the rest is folded. `pictures` (batch, height, width, 3), 0 to 1.
    """
    files = {} if pictures is None else {"images": ui.PreviewImage(pictures[:PICTURES]).values}
    return {"text": (text,), "steer_warning": (warning,) if warning else (), **files}


def check_encoded(**conditionings) -> None:
    """ValueError for a conditioning, by its input, that holds nothing; None is one that is not connected."""
    for name, conditioning in conditionings.items():
        if conditioning is not None and not len(conditioning):
            raise ValueError(f"{name} holds no conditioning; connect an encoded prompt")


def answer_of(*checks: tuple) -> bool | str:
    """What a node's `validate_inputs` answers: True, or why one of the checks refuses its values with a ValueError.

    A check is a function and its arguments. One with an argument None is left out: that input is connected, and its
    value is known in the run alone, where the node makes the same check.
    """
    for check, *values in checks:
        try:
            if all(value is not None for value in values):
                check(*values)
        except ValueError as error:
            return str(error)
    return True


def check_share(node: str, name: str, value: float) -> None:
    """ValueError unless it is from 0 to 1: where a node validates an input, the host does not check its bounds."""
    if not 0.0 <= value <= 1.0:  # a NaN fails every comparison
        raise ValueError(f"{node}: {name} is {value}; it needs to be from 0 to 1")


def check_interval(node: str, start_percent: float, end_percent: float) -> None:
    """ValueError unless the two are shares of a run, the first before the second."""
    check_share(node, "start_percent", start_percent)
    check_share(node, "end_percent", end_percent)
    if start_percent >= end_percent:
        raise ValueError(
            f"{node}: start_percent {start_percent:g} is not before end_percent {end_percent:g}; "
            "0 and 1 guide the whole run"
        )


def check_strength(node: str, strength: float) -> None:
    """ValueError unless it is a share of diffusion time above 0."""
    check_share(node, "strength", strength)
    if strength == 0.0:
        raise ValueError(
            f"{node}: strength is 0, at which there is no noise and nothing can change; use more than 0, at most 1"
        )
