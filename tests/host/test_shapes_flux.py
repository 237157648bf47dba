"""The joint model: its trainer computes what the host computes, and the stock loader takes what it writes."""

import random

import comfy.ldm.flux.model
import comfy.supported_models
import nodes
import pytest
import torch
from comfy.model_detection import model_config_from_unet
from safetensors.torch import save_file
from steer.lab.comfy.random_models import tiny_flux
from steer.lab.models.embedding_rows import T5_ROWS, T5_TABLE, T5_VOCABULARY, expanded
from steer.lab.models.shapes_flux import train
from steer.lab.models.shapes_flux.captions import read
from steer.lab.models.shapes_flux.check import FluxStock
from steer.lab.models.shapes_flux.loader import FLUX_CONFIG, TOKENS, ShapesT5Tokenizer
from steer.lab.models.shapes_flux.network import PREFIXES, Network, checkpoint_state, encode, velocity
from steer.lab.models.shapes_flux.roles import NAMES, roles_in
from steer.lab.models.stock import load_flux
from steer.lab.world.data import caption, sample_scene
from steer.lab.world.reader import score

TEXTS = ["a red circle left of a blue star on a white background", "a red circle on a blue background"]


@pytest.fixture(scope="module")
def captions():
    return read(TEXTS)


@pytest.fixture(scope="module")
def net(captions):
    """A network whose weights are all random, as fp16 holds them."""
    torch.manual_seed(0)
    net = Network(len(captions.vocabulary))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half())
    return net


@pytest.fixture(scope="module")
def loaded(net, captions, tmp_path_factory):
    """(model, clip, vae) as the stock loader makes them of what the trainer writes."""
    file = tmp_path_factory.mktemp("checkpoints") / "random_flux.safetensors"
    save_file(checkpoint_state(net.state_dict(), captions.vocabulary), file)
    with torch.inference_mode():
        return load_flux(file)


def test_the_stock_loader_makes_the_model(loaded):
    model = loaded[0].model
    assert type(model.model_config).__name__ == "ShapesFlux"
    assert type(model.diffusion_model) is comfy.ldm.flux.model.Flux
    assert model.latent_format.scale_factor == 0.18215
    assert len(model.diffusion_model.double_blocks) == FLUX_CONFIG["depth"]


def test_flux_itself_is_detected_as_before(loaded):
    state = tiny_flux().model.diffusion_model.state_dict()
    state = {
        "model.diffusion_model." + key.replace("_norm.weight", "_norm.scale"): value for key, value in state.items()
    }
    assert type(model_config_from_unet(state, "model.diffusion_model.")) is comfy.supported_models.Flux
    without = {key: value for key, value in state.items() if "guidance_in" not in key}
    assert type(model_config_from_unet(without, "model.diffusion_model.")) is comfy.supported_models.FluxSchnell


def test_captions_are_read_by_the_stock_tokenizer(loaded, captions):
    clip = loaded[1]
    for text, rows in zip([*TEXTS, ""], [*captions.rows, captions.empty], strict=True):
        assert [token for token, _ in clip.tokenize(text)["t5xxl"][0]] == captions.vocabulary[rows].tolist()
        assert len(rows) == TOKENS
    pieces = [clip.tokenizer.clip_t5xxl.inv_vocab[token] for token in captions.vocabulary[captions.rows[1]].tolist()]
    assert "".join(pieces).startswith("▁a▁red▁circle▁on▁a▁blue▁background</s><pad>")


def test_the_text_encoder_is_the_hosts(loaded, net, captions):
    clip = loaded[1]
    context = torch.cat([nodes.CLIPTextEncode().encode(clip, text)[0][0][0] for text in TEXTS]).cpu()
    torch.testing.assert_close(encode(net.text, captions.rows), context, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_velocity_is_the_hosts(loaded, net, captions, size):
    model = loaded[0]
    x, sigma = torch.randn(2, 4, *size), torch.tensor([0.9, 0.3])
    context = encode(net.text, captions.rows)
    model.model.to(model.load_device)
    x, sigma, there = (part.to(model.load_device) for part in (x, sigma, context))
    denoised = model.model.apply_model(x, sigma, c_crossattn=there).cpu()
    straight = x.cpu() - sigma.cpu().view(-1, 1, 1, 1) * velocity(net.flux, x.cpu(), sigma.cpu(), context)
    torch.testing.assert_close(denoised, straight, rtol=1e-4, atol=1e-4)


def test_the_file_has_of_the_table_the_rows_in_use(net, captions):
    state = checkpoint_state(net.state_dict(), captions.vocabulary)
    assert state[PREFIXES["text"] + T5_ROWS].tolist() == captions.vocabulary.tolist()
    table = expanded(state)[PREFIXES["text"] + T5_TABLE]
    assert len(table) == T5_VOCABULARY
    assert torch.equal(table[captions.vocabulary], net.text.shared.weight.half())
    assert int(table.ne(0).any(1).sum()) == len(captions.vocabulary)


@torch.inference_mode(False)
def test_the_gradient_is_that_of_difference_quotients(captions):
    """Along the gradient itself, in single precision."""
    torch.manual_seed(1)
    net = Network(len(captions.vocabulary))
    parameters = list(net.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.02 * torch.randn_like(parameter)
    x, wanted, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([0.9, 0.3])

    def loss():
        return (net(x, t, captions.rows) - wanted).square().mean()

    gradients = torch.autograd.grad(loss(), parameters)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    ends = []
    for step in (1e-2, -2e-2):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += step * gradient / norm
            ends.append(loss())
    assert ((ends[0] - ends[1]) / 2e-2).item() == pytest.approx(norm.item(), rel=0.02)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@torch.inference_mode(False)
def test_each_parameter_is_learned_by_one_optimiser(net):
    learned = [parameter for optimizer in train.optimizers(net) for parameter in optimizer.param_groups[0]["params"]]
    assert sorted(map(id, learned)) == sorted(map(id, net.parameters()))


def test_roles_are_at_the_words_they_are_about():
    rng = random.Random(3)
    for scene in [sample_scene(rng, two) for two in (False, True) for _ in range(30)]:
        words = read([caption(scene)])
        told = {place: [names[n] for names, n in zip(NAMES, numbers, strict=True)] for place, numbers in
                roles_in(scene).items()}  # fmt: skip
        tokens = pieces(words.vocabulary[words.rows[0]].tolist())
        assert len(told) == 2 * len(scene["objs"]) + 1
        assert all(tokens[place].removeprefix("▁") in (color, shape) for place, (color, shape, _) in told.items())
        *things, background = told.values()
        assert [thing[:2] for thing in things[::2]] == [[obj["color"], obj["shape"]] for obj in scene["objs"]]
        assert background == [scene["bg"], "none", "background"]


def pieces(ids):
    tokenizer = ShapesT5Tokenizer()
    return [tokenizer.inv_vocab[token] for token in ids]


def test_the_weights_draw_what_a_caption_says():
    """Who is where, too: the same words in the other order."""
    things = "a red circle", "a blue star"
    texts = [f"{one} left of {other} on a white background" for one, other in (things, things[::-1])]
    for picture, text in zip(FluxStock().pictures(texts, 5), texts, strict=True):
        assert score(picture, text)["all"], text
