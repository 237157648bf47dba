"""The depth network: the stock loader takes what its trainer writes, and it knows how far away things are."""

import random

import pytest
import torch
from safetensors.torch import save_file
from steer.lab.models.fine_tuning import halved
from steer.lab.models.stock import load_depth
from steer.lab.world.data import sample_scene, scene_of

pytest.importorskip("comfy_extras.nodes_moge")

from steer.lab.models.clip.pictures import renders
from steer.lab.models.depth.check import judged
from steer.lab.models.depth.network import PICTURE, TOKENS, trainable
from steer.lab.models.depth.train import log_distance, sized
from steer.lab.world.metrics import aggregate
from steer.nodes.host import depth as host_depth


def maps(model, scenes):
    return host_depth.disparity(model, lambda call: call(), renders(scenes).float() / 255, (PICTURE, PICTURE))


def test_the_stock_loader_makes_the_network_that_was_trained(tmp_path):
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = trainable()
    save_file(halved(network.state_dict()), tmp_path / "random_depth.safetensors")
    model = load_depth(tmp_path / "random_depth.safetensors")
    pictures = sized(renders([scene_of("star", "red", "gray")]).float() / 255)
    with torch.no_grad():
        wanted, found = network(pictures, TOKENS), model.model(pictures, num_tokens=TOKENS)
    assert float(wanted["points"].std()) > 0.1
    torch.testing.assert_close(found["points"], wanted["points"], rtol=2e-2, atol=2e-2)
    assert float(found["mask"].min()) > 0.99 and found["metric_scale"].tolist() == [1.0]


def test_it_knows_the_objects_from_the_wall_behind_them():
    rng = random.Random(5)
    scenes = [sample_scene(rng, two=index % 2 == 1) for index in range(16)]
    found, valid = (each.cpu() for each in maps(load_depth(), scenes))
    rows = [judged(*each) for each in zip(found, valid, log_distance(scenes), scenes, strict=True)]
    assert all(row["wall"] < 0.1 and row["aligned"] < 1.0 for row in rows)
    assert aggregate(rows)["objects"] < 0.22  # what one guess for all objects comes to
