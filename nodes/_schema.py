"""What schemas say on newer hosts and leave out on older ones."""

from comfy_api.latest import io


def where_known(**fields) -> dict:
    """Those of the fields that this host's `io.Schema` has; none of them changes what a node computes."""
    return {name: value for name, value in fields.items() if name in io.Schema.__dataclass_fields__}
