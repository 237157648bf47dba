"""Classifier guidance on the host: the file's way to the loss, and what does not belong together."""

import gc
import os

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import torch
from steer.files.classifier_file import read_classifier, write_classifier
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, sigmas_of
from steer.lab.weights import CLASSIFIER
from steer.nodes.classifier import SteerClassifierLoader, SteerClassifierLoss
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host.law import noise_law
from steer.samplers.classifier import Classifier, Network
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.tests import checks, oracles
from steer.tests.host_models import FLOW, relative, with_law


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the host's for classifiers, with the shapes' in it."""
    folder = tmp_path_factory.mktemp("classifiers")
    (folder / "shapes_classifier.safetensors").write_bytes(CLASSIFIER.read_bytes())
    folder_paths.add_model_folder_path("classifiers", str(folder), is_default=True)
    return folder


@pytest.fixture
def classifier(folder):
    return SteerClassifierLoader.execute("shapes_classifier.safetensors")[0]


def euler():
    return comfy.samplers.sampler_object("euler")


def guided(guider, classifier, label="red circle", scale=4.0, through_model=True):
    loss = SteerClassifierLoss.execute(classifier, label)[0]
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model)[0]


def test_makes_the_label_likely(shapes, classifier):
    """From the empty prompt; the pictures themselves are judged in the benchmark."""
    empty = encode(shapes[1], "")
    guider, noise = host_guider(shapes[0], empty, empty, 1.0), noise_of((2, 4, 16, 16))
    sigmas = sigmas_of(shapes[0], 10)

    def likely(latent):
        latent = guider.model_patcher.model.process_latent_in(latent)
        return classifier.log_probs(latent, 0.03)[:, classifier.index("red circle")].exp()

    assert likely(run(guider, euler(), sigmas, noise)).max() < 0.5
    assert likely(run(guided(guider, classifier), euler(), sigmas, noise)).min() > 0.9


def test_the_host_sees_one_patcher_of_the_network(shapes):
    """One that went with its loss would leave the network behind, which the host takes for a memory leak."""
    classifier = read_classifier(CLASSIFIER)  # one of its own
    empty = encode(shapes[1], "")
    guider = host_guider(shapes[0], empty, empty, 1.0)
    gc.collect()  # what tests before it left dead is not of this one
    dead = [loaded for loaded in comfy.model_management.current_loaded_models if loaded.is_dead()]
    for label in ("red circle", "blue star"):
        run(guided(guider, classifier, label), euler(), torch.tensor([1.0, 0.0]), noise_of((1, 4, 16, 16)))
        gc.collect()
        loaded = [each for each in comfy.model_management.current_loaded_models if not any(each is old for old in dead)]
        assert not any(each.is_dead() for each in loaded)


def test_does_not_differentiate_or_add_to_the_model(shapes, classifier):
    model, rows = counted(shapes[0])
    guider = host_guider(model, encode(shapes[1], "a star"), encode(shapes[1], ""), 3.0)
    sigmas, noise = sigmas_of(model, 4), noise_of((1, 4, 16, 16))
    through, not_through = (
        run(guided(guider, classifier, through_model=through_model), euler(), sigmas, noise)
        for through_model in (True, False)
    )
    assert sum(rows) == 2 * 2 * 4 and torch.equal(through, not_through)


def test_a_batch_is_its_singles_and_the_guider_repeats(guider, classifier):
    sigmas, noise = sigmas_of(guider.model_patcher, 5), noise_of((2, 4, 16, 16))
    steered = guided(guider, classifier)
    both = run(steered, euler(), sigmas, noise)
    assert torch.equal(run(steered, euler(), sigmas, noise), both)
    singles = torch.cat([run(steered, euler(), sigmas, noise[i : i + 1]) for i in range(2)])
    assert relative(both, singles) < 2e-5


def test_other_sizes(guider, classifier):
    sigmas, noise = sigmas_of(guider.model_patcher, 3), noise_of((1, 4, 20, 12))
    out = run(guided(guider, classifier), euler(), sigmas, noise)
    assert torch.isfinite(out).all() and not torch.equal(out, run(guider, euler(), sigmas, noise))


@pytest.mark.parametrize(
    "law, latent_format, message",
    [
        (RECTIFIED_FLOW, "SD15", "rectified-flow model with SD15"),
        (VARIANCE_EXPLODING, "SDXL", "variance-exploding model with SDXL"),
    ],
)
def test_of_another_family(shapes, folder, law, latent_format, message):
    model, rows = counted(shapes[0])
    guider = host_guider(model, encode(shapes[1], "a star"), encode(shapes[1], ""), 3.0)
    write_classifier(folder / "other.safetensors", Classifier(("a", "b"), law, latent_format, Network(4, 8, 2)))
    other = SteerClassifierLoader.execute("other.safetensors")[0]
    with pytest.raises(ValueError, match=f"SteerGradientGuider: the classifier is of a {message}.*with SD15 latents"):
        run(guided(guider, other, "a"), euler(), sigmas_of(model, 3), noise_of((1, 4, 16, 16)))
    assert not rows


def test_on_a_flow_model(shapes, folder):
    """From pure noise, where a flow model's alpha is 0."""
    torch.manual_seed(0)
    network = Network(4, 8, 2)
    write_classifier(folder / "flow.safetensors", Classifier(("a", "b"), RECTIFIED_FLOW, "SD15", network))
    model = with_law(shapes[0], FLOW)
    guider = host_guider(model, encode(shapes[1], "a star"), encode(shapes[1], ""), 3.0)
    sigmas, noise = sigmas_of(model, 4), noise_of((1, 4, 16, 16))
    assert float(sigmas[0]) == 1.0
    steered = guided(guider, SteerClassifierLoader.execute("flow.safetensors")[0], "b", 50.0)
    out = run(steered, euler(), sigmas, noise)
    assert torch.isfinite(out).all() and not torch.equal(out, run(guider, euler(), sigmas, noise))


def test_bad_input(folder, classifier):
    for name in ("none.safetensors", "../shapes_classifier.safetensors", "/etc/passwd", ""):
        with pytest.raises(ValueError, match="SteerClassifierLoader: .*shapes_classifier.safetensors"):
            SteerClassifierLoader.execute(name)
    (folder / "broken.safetensors").write_bytes(CLASSIFIER.read_bytes()[:1000])
    with pytest.raises(ValueError, match="SteerClassifierLoader: "):
        SteerClassifierLoader.execute("broken.safetensors")
    with pytest.raises(ValueError, match="SteerClassifierLoss: .*red circle"):
        SteerClassifierLoss.execute(classifier, "a red hexagon")


def test_the_file_is_read_the_same_in_inference_mode(classifier):
    with torch.inference_mode(False):
        outside = read_classifier(CLASSIFIER)
    x = noise_of((1, 4, 16, 16))
    assert torch.equal(classifier.log_probs(x, 1.0), outside.log_probs(x, 1.0))
    assert not any(weight.is_inference() for weight in classifier.network.parameters())


def on_family(family):
    guider, sigmas = oracles.guider_of(family), oracles.from_level(family)
    model = family.model()
    law, latent_format = noise_law(model.get_model_object("model_sampling")), type(model.model.latent_format).__name__
    folder = os.path.join(folder_paths.get_temp_directory(), "classifiers")
    os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path("classifiers", folder)
    with torch.inference_mode(False):
        network = Network(family.shape[1], 8, 3)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    name = f"{latent_format}_{law.name}.safetensors"
    made = Classifier(("circle", "star", "other"), law, latent_format, network.requires_grad_(False))
    write_classifier(os.path.join(folder, name), made, "float32")
    loaded = SteerClassifierLoader.execute(name)[0]
    loss = SteerClassifierLoss.execute(loaded, "star")[0]
    steered = SteerGradientGuider.execute(guider, loss, 100.0, 0.0, 1.0, True, None, 3.0)[0]

    def likely(guider):
        latent = model.model.process_latent_in(
            run(guider, oracles.EULER, sigmas, oracles.noise_for(family), family.picture())
        )
        return float(loaded.log_probs(latent, 0.01)[0, 1])

    assert likely(steered) > likely(guider) + 0.03


def check_classifier(world, given, run, output):
    assert output[0].labels == world.usual["STEER_CLASSIFIER"]["classifier"].labels


ORACLE = {
    "SteerClassifierLoader": ("the label becomes likelier", on_family),
    "SteerClassifierLoss": ("the label becomes likelier", on_family),
}
CHECK = {
    "SteerClassifierLoader": (check_classifier, ()),
    "SteerClassifierLoss": (checks.loss, (*checks.RUN, "guider")),
}
USUAL = {
    "SteerClassifierLoader": {"classifier_name": ("shapes_classifier.safetensors",)},
    "SteerClassifierLoss": {"label": ("red circle",)},
}
