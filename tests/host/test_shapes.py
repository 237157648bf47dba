import comfy.supported_models
import pytest
from steer.lab import models
from steer.lab.models.shapes_unet.check import SHEET, Stock
from steer.lab.world.metrics import attributes
from steer.lab.world.vocabulary import token_ids

CAPTIONS = SHEET[:6] + SHEET[8:10]


@pytest.fixture(scope="module")
def stock():
    return Stock()


def test_pictures_show_what_the_captions_say(stock):
    pictures = stock.pictures(CAPTIONS, seed=0)
    right = [attributes(picture, text)["all"] for picture, text in zip(pictures, CAPTIONS, strict=True)]
    assert sum(right) >= 7


def test_stock_loader_makes_the_model(stock):
    assert type(stock.model.model.model_config).__name__ == "Shapes"
    assert stock.model.model.latent_format.scale_factor == 0.18215


def test_registering_again_changes_nothing():
    before = list(comfy.supported_models.models)
    models.register()
    assert comfy.supported_models.models == before


def test_vocabulary_is_the_hosts(stock):
    for text in [*SHEET, ""]:
        hosts = [token for token, _ in stock.clip.tokenize(text)["l"][0]]
        assert token_ids(text) == hosts
