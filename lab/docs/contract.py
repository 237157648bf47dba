"""What saved workflows rely on, in tests/host/contract.json: additions are written, nothing else.

Node ids, inputs (name, type, default, whether optional) in their order, and outputs (type, name).
"""

import json
from pathlib import Path

from ..package import ROOT

PATH = ROOT / "tests" / "host" / "contract.json"


def files() -> dict[Path, str]:
    """The contract with what the nodes have beyond it. ValueError as in `with_additions`."""
    return {PATH: text_of(with_additions(json.loads(PATH.read_text()), contract()))}


def contract() -> dict:
    """What the nodes are now."""
    from steer.nodes import NODES

    nodes = {}
    for schema in (node.GET_SCHEMA() for node in NODES):
        inputs = [[i.id, i.io_type, getattr(i, "default", None), bool(i.optional)] for i in schema.inputs]
        outputs = [[o.io_type, o.display_name] for o in schema.outputs]
        nodes[schema.node_id] = {"inputs": inputs, "outputs": outputs}
    return nodes


def with_additions(stands: dict, now: dict) -> dict:
    """`stands`, with new nodes, new optional inputs and new outputs at the end of a node's.

    ValueError that lists all else: what stands is in people's saved workflows.
    """
    wrong = [f"{node_id} is gone" for node_id in stands if node_id not in now]
    for node_id, node in stands.items():
        if node_id in now:
            wrong += [f"{node_id}: {each}" for each in _broken(node, now[node_id])]
    if wrong:
        raise ValueError(
            "saved workflows would break, so the contract stays as it is:\n  " + "\n  ".join(wrong) + "\n"
            "Set this back, and make what is new an optional input after the others, or a node with an id of its own."
        )
    return {**stands, **now}


def text_of(contract: dict) -> str:
    """The file: a line for each input."""
    nodes = []
    for node_id, node in contract.items():
        inputs = ",\n".join(f"   {json.dumps(each)}" for each in node["inputs"])
        inputs = f"[\n{inputs}\n  ]" if inputs else "[]"
        nodes.append(f' "{node_id}": {{\n  "inputs": {inputs},\n  "outputs": {json.dumps(node["outputs"])}\n }}')
    return "{\n" + ",\n".join(nodes) + "\n}\n"


def _broken(stands: dict, now: dict) -> list[str]:
    """What a node has no more, has otherwise, or asks for anew."""
    wrong = []
    for kind in ("inputs", "outputs"):
        for index, item in enumerate(stands[kind]):
            there = now[kind][index] if index < len(now[kind]) else "nothing"
            if there != item:
                wrong.append(f"{kind[:-1]} {index + 1} is {there}, and stands as {item}")
    new = now["inputs"][len(stands["inputs"]) :]
    return wrong + [f"the new input {name} is not optional" for name, _, _, optional in new if not optional]
