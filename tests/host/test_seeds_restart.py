"""A seed is a picture: the same on a node whose others are cached, and on a server started anew."""

import numpy as np
import pytest
from steer.lab.comfy.server import Server
from steer.lab.demo.runner import load_workflow, shortened
from steer.lab.world.inputs import write_inputs

NAMES = ("direct_edit", "direct_edit_mask", "direct_edit_prompt_to_prompt", "langevin", "repaint")


def pictures_of(server, prompt):
    return [np.asarray(picture) for _, picture in server.images(server.run(prompt))]


def another_seed(prompt):
    changed = {node: {**entry, "inputs": dict(entry["inputs"])} for node, entry in prompt.items()}
    for entry in changed.values():
        if "noise_seed" in entry["inputs"]:
            entry["inputs"]["noise_seed"] += 1
    return changed


def same(some, others):
    return all(map(np.array_equal, some, others))


@pytest.mark.slow
def test_seeds_repeat_bitwise():
    prompts, first = {name: shortened(load_workflow(name)) for name in NAMES}, {}
    with Server() as server:
        write_inputs(server.input_folder)
        for name, prompt in prompts.items():
            first[name] = pictures_of(server, prompt)
            assert not same(first[name], pictures_of(server, another_seed(prompt)))
            assert same(first[name], pictures_of(server, prompt))
    with Server() as server:
        write_inputs(server.input_folder)
        for name, prompt in reversed(prompts.items()):
            assert first[name] and same(first[name], pictures_of(server, prompt))
