import asyncio

import comfy.supported_models
import nodes
import pytest
import torch
from safetensors.torch import load_file
from steer.lab import models
from steer.lab.models.clip.network import Towers, files
from steer.lab.models.embedding_rows import TABLE, VOCABULARY, expanded
from steer.lab.models.shapes_unet.check import SHEET, Stock
from steer.lab.models.shapes_unet.network import Network, checkpoint_state
from steer.lab.models.stock import load_clip_pair
from steer.lab.weights import CHECKPOINT, CLIP_TEXT
from steer.lab.world.metrics import attributes
from steer.lab.world.pair_texts import VOCABULARY as VOCABULARY_OF_PAIR
from steer.lab.world.vocabulary import token_ids

CAPTIONS = SHEET[:6] + SHEET[8:10]


@pytest.fixture(scope="module")
def stock():
    return Stock()


@pytest.mark.slow
def test_pictures_show_what_the_captions_say(stock):
    pictures = stock.pictures(CAPTIONS, seed=0)
    right = [attributes(picture, text)["all"] for picture, text in zip(pictures, CAPTIONS, strict=True)]
    assert sum(right) >= 7


def test_stock_loader_makes_the_model(stock):
    assert type(stock.model.model.model_config).__name__ == "Shapes"
    assert stock.model.model.latent_format.scale_factor == 0.18215


def whole_table(state):
    """The embedding table of a file's tensors, expanded."""
    (table,) = (value for key, value in expanded(state).items() if key.endswith(TABLE))
    return table


@pytest.mark.parametrize("file", [CHECKPOINT, CLIP_TEXT], ids=lambda file: file.stem)
def test_the_host_has_the_whole_table_of_what_a_file_has_rows_of(stock, file):
    clip = stock.clip if file == CHECKPOINT else load_clip_pair()[0]
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    assert torch.equal(table.cpu().float(), whole_table(load_file(file)).float())


def test_trainers_write_the_rows_in_use():
    places = torch.tensor([0, 320, 49407])
    net = Network(len(places))
    learned = net.text.get_input_embeddings().weight.detach().half()
    state = checkpoint_state(net.state_dict(), places, {})
    known = {key for key in load_file(CHECKPOINT) if not key.startswith("first_stage_model.")}
    assert state.keys() == known
    expected = torch.zeros(VOCABULARY, learned.shape[1], dtype=torch.float16).index_copy(0, places, learned)
    assert torch.equal(whole_table(state), expected)


def test_the_pairs_trainer_writes_the_rows_in_use():
    towers = Towers()
    learned = towers.text.get_input_embeddings().weight.detach().half()
    text, _ = files(towers.state_dict())
    assert text.keys() == load_file(CLIP_TEXT).keys()
    table = whole_table(text)
    assert torch.equal(table[VOCABULARY_OF_PAIR], learned) and int(table.ne(0).any(1).sum()) == len(learned)


def test_the_host_takes_the_folder_as_a_pack():
    assert asyncio.run(nodes.load_custom_node(models.__path__[0]))


def test_registering_again_changes_nothing():
    before = list(comfy.supported_models.models)
    models.register()
    assert comfy.supported_models.models == before


def test_vocabulary_is_the_hosts(stock):
    for text in [*SHEET, ""]:
        hosts = [token for token, _ in stock.clip.tokenize(text)["l"][0]]
        assert token_ids(text) == hosts
