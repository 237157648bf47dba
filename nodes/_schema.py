"""What the editor is told of nodes: in schemas, where the host knows the field, and after a run (`web/steer.js`)."""

from comfy_api.latest import io


def where_known(**fields) -> dict:
    """Those of the fields that this host's `io.Schema` has; none of them changes what a node computes."""
    return {name: value for name, value in fields.items() if name in io.Schema.__dataclass_fields__}


def shown(text: str, warning: str = "") -> dict:
    """What a node's output says for the editor: a text, drawn in the node, and what in it is a warning."""
    return {"text": (text,), "steer_warning": (warning,) if warning else ()}
