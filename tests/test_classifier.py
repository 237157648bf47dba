"""The classifier and its file; how well a trained one guides is measured in lab/models."""

import json
from dataclasses import replace
from math import inf, log

import pytest
import torch
from safetensors.torch import load, save
from steer.files.classifier_file import read_classifier, write_classifier
from steer.samplers.classifier import Classifier, Network, log_level
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw

LABELS = ("red circle", "Blue  Star", "two objects")
LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW, NoiseLaw(flow=True, noise_scale=1.7)]
SIZES = [(16, 16), (9, 14), (64, 40), (1, 1), (3, 2)]


def classifier_of(law=VARIANCE_EXPLODING, channels=4, labels=LABELS):
    """A classifier with random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    network = Network(channels, 16, len(labels)).requires_grad_(False).eval()
    for name, weight in network.named_parameters():
        if "film" in name or "conv_out" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return Classifier(labels, law, "SD15", network)


def latents(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", SIZES)
def test_log_probs_are_those_of_a_distribution(law, size):
    for channels in (4, 16):
        found = classifier_of(law, channels).log_probs(latents(2, channels, *size), 0.7)
        assert found.shape == (2, len(LABELS)) and found.dtype == torch.float32
        assert torch.allclose(found.exp().sum(1), torch.ones(2), atol=1e-5)


def test_half_precision_latents_are_computed_in_float32():
    x = latents(2, 4, 16, 16).half()
    assert torch.equal(classifier_of().log_probs(x, 0.7), classifier_of().log_probs(x.float(), 0.7))


def test_the_level_and_the_picture_matter():
    classifier, x = classifier_of(), latents(1, 4, 16, 16)
    # the same network input but for the level
    few, many = (classifier.log_probs(x * (1 + sigma**2) ** 0.5, sigma) for sigma in (0.5, 5.0))
    assert (few - many).abs().max() > 0.01
    assert (few - classifier.log_probs(latents(1, 4, 16, 16, seed=2), 0.5)).abs().max() > 0.01


def test_a_batch_of_two_equals_two_singles():
    classifier, x = classifier_of(), latents(2, 4, 16, 12)
    both = classifier.log_probs(x, 2.0)
    assert torch.allclose(both, torch.cat([classifier.log_probs(one, 2.0) for one in x.split(1)]), atol=1e-5)


def test_laws_with_the_same_ratio_see_the_same_level():
    """X = x / alpha, Sigma = sigma / alpha turns a flow model into a variance-exploding one."""
    for sigma in (0.1, 0.5, 0.9):
        exploding, flow = log_level(VARIANCE_EXPLODING, sigma / (1 - sigma)), log_level(RECTIFIED_FLOW, sigma)
        assert flow == pytest.approx(exploding) == pytest.approx(log(sigma / (1 - sigma)))
    assert log_level(NoiseLaw(flow=True, noise_scale=1.7), 0.5) == pytest.approx(log(1.7))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [0.05, 0.6, 0.95])
def test_gradient_against_finite_differences(law, sigma):
    classifier = classifier_of(law)
    network = classifier.network.double()
    x = latents(2, 4, 7, 10).double().requires_grad_()
    level = torch.full((2,), log_level(law, sigma), dtype=torch.float64)
    scale = 1.0 if law.flow else (1 + sigma**2) ** -0.5

    def chosen(x):
        return network(scale * x, level).log_softmax(-1)[:, 1].sum()

    exact = torch.autograd.grad(chosen(x), x)[0]
    direction = latents(2, 4, 7, 10, seed=5).double()
    step = 1e-5 * direction
    slope = (chosen(x + step) - chosen(x - step)) / 2e-5
    assert (exact * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)
    network.float()
    single = x.detach().float().requires_grad_()
    found = torch.autograd.grad(classifier.log_probs(single, sigma)[:, 1].sum(), single)[0]
    assert torch.allclose(found.double(), exact, atol=1e-5 * exact.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1.0])
def test_ends_of_the_schedule_have_finite_gradients(law, sigma):
    x = latents(1, 4, 8, 8).requires_grad_()
    found = classifier_of(law).log_probs(x, sigma)
    gradient = torch.autograd.grad(found[0, 0], x)[0]
    assert torch.isfinite(found).all() and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_far_up_is_clamped_and_finite():
    x = 1e9 * latents(1, 4, 8, 8)
    assert torch.isfinite(classifier_of().log_probs(x, 1e9)).all()


@pytest.mark.parametrize("shape", [(4, 16, 16), (1, 3, 16, 16), (1, 4, 5, 16, 16), (0, 4, 16, 16), (1, 4, 0, 16)])
def test_other_latents_are_refused(shape):
    with pytest.raises(ValueError, match="takes .batch, 4, height, width."):
        classifier_of().log_probs(torch.zeros(shape), 1.0)


@pytest.mark.parametrize("label", ["blue star", "BLUE STAR", " Blue\tstar "])
def test_labels_are_found_whatever_their_case_and_spaces(label):
    assert classifier_of().index(label) == 1


@pytest.mark.parametrize("label", ["", "bluestar", "green star", "star"])
def test_unknown_labels_are_refused_with_those_there_are(label):
    with pytest.raises(ValueError, match="red circle, Blue Star, two objects"):
        classifier_of().index(label)


def weights(classifier):
    return classifier.network.state_dict()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("precision, dtype", [("float16", torch.float16), ("float32", torch.float32)])
def test_round_trip(tmp_path, law, precision, dtype):
    written = classifier_of(law, channels=16)
    write_classifier(tmp_path / "a", written, precision)
    found = read_classifier(tmp_path / "a")
    assert (found.labels, found.law, found.latent_format) == (LABELS, law, "SD15")
    assert not found.network.training
    for name, weight in found.network.named_parameters():
        assert torch.equal(weight, weights(written)[name].to(dtype).float())
        assert weight.dtype == torch.float32 and not weight.requires_grad
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_read_in_inference_mode_it_has_gradients_afterwards(tmp_path):
    write_classifier(tmp_path / "a", classifier_of(), "float32")
    with torch.inference_mode():
        found = read_classifier(tmp_path / "a")
        x = latents(1, 4, 8, 8)
        with torch.inference_mode(False), torch.enable_grad():
            inner = x.clone().requires_grad_()
            gradient = torch.autograd.grad(found.log_probs(inner, 1.0)[0, 0], inner)[0]
    assert not any(weight.is_inference() for weight in found.network.parameters())
    outside = latents(1, 4, 8, 8).requires_grad_()
    wanted = torch.autograd.grad(classifier_of().log_probs(outside, 1.0)[0, 0], outside)[0]
    assert torch.equal(gradient, wanted)


def test_weights_outlive_the_file(tmp_path):
    write_classifier(tmp_path / "a", classifier_of(), "float32")
    found = read_classifier(tmp_path / "a")
    with open(tmp_path / "a", "r+b") as file:
        file.write(bytes((tmp_path / "a").stat().st_size))
    assert all(
        torch.equal(a, b) for a, b in zip(weights(found).values(), weights(classifier_of()).values(), strict=True)
    )


def broken_weight(value):
    classifier = classifier_of()
    classifier.network.out.bias[0] = value
    return classifier


@pytest.mark.parametrize(
    "classifier, precision, message",
    [
        (replace(classifier_of(), labels=LABELS[:2]), "float16", "2 labels for a network of 3"),
        (replace(classifier_of(), labels=("a", "A ", "b")), "float16", "two are the same"),
        (replace(classifier_of(), labels=("a", "", "b")), "float16", "no list of"),
        (replace(classifier_of(), latent_format="SD 1.5"), "float16", "latent format"),
        (replace(classifier_of(), law=NoiseLaw(noise_scale=inf)), "float16", "noise_scale"),
        (classifier_of(), "bfloat16", "precision is 'bfloat16'"),
        (broken_weight(1e6), "float16", "out.bias holds NaN or infinite"),
        (broken_weight(float("nan")), "float32", "out.bias holds NaN or infinite"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, classifier, precision, message):
    with pytest.raises(ValueError, match=message):
        write_classifier(tmp_path / "a", classifier, precision)
    assert not list(tmp_path.iterdir())


def good_bytes(tmp_path):
    write_classifier(tmp_path / "good", classifier_of())
    return (tmp_path / "good").read_bytes()


def remade(data, change):
    """The file's bytes after `change` has had its metadata and tensors in hand."""
    end = 8 + int.from_bytes(data[:8], "little")
    metadata, tensors = json.loads(data[8:end])["__metadata__"], load(data)
    change(metadata, tensors)
    return save(tensors, metadata)


def with_metadata(**changes):
    return lambda data: remade(data, lambda metadata, _: metadata.update(changes))


def without(key):
    return lambda data: remade(data, lambda metadata, tensors: (metadata.pop(key, None), tensors.pop(key, None)))


def with_tensor(name, change):
    return lambda data: remade(data, lambda _, tensors: tensors.update({name: change(tensors.get(name))}))


def with_header(old, new):
    """The text of the header changed behind the library's back."""

    def change(data):
        end = 8 + int.from_bytes(data[:8], "little")
        text = data[8:end].replace(old, new, 1)
        assert text != data[8:end]
        return len(text).to_bytes(8, "little") + text + data[end:]

    return change


CORRUPTED = {
    "empty": (lambda data: b"", "not a safetensors file"),
    "picture": (lambda data: b"\x89PNG\r\n" * 99, "not a safetensors file"),
    "pickle": (lambda data: b"PK\x03\x04" * 99, "not a safetensors file"),
    "endless header": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "not a safetensors file"),
    "cut in the header": (lambda data: data[:500], "not a safetensors file"),
    "cut in the weights": (lambda data: data[:-100], "cannot be read as safetensors"),
    "longer": (lambda data: data + b"\0", "cannot be read as safetensors"),
    "header of rubbish": (lambda data: data[:8] + b"{" * 500 + data[508:], "cannot be read as safetensors"),
    "lying shape": (with_header(b'"shape":[3]', b'"shape":[4]'), "cannot be read as safetensors"),
    "a checkpoint": (lambda data: save({"model.weight": torch.zeros(3)}), "holds no classifier"),
    "other format": (with_metadata(format="pt"), "holds no classifier"),
    "other version": (with_metadata(version="2"), "version '2'"),
    "no version": (without("version"), "version 'None'"),
    "no labels": (without("labels"), "'labels'"),
    "more metadata": (with_metadata(author="x"), "'author'"),
    "labels cut": (with_metadata(labels='["red'), "labels are damaged"),
    "labels nested": (with_metadata(labels="[" * 100_000), "labels are damaged"),
    "labels of no list": (with_metadata(labels='{"a": 1}'), "no list"),
    "labels of numbers": (with_metadata(labels="[1, 2, 3]"), "no list"),
    "one label": (with_metadata(labels='["a"]'), "no list"),
    "blank label": (with_metadata(labels='["a", " ", "b"]'), "no list"),
    "label with a newline": (with_metadata(labels='["a", "b\\nc", "d"]'), "no list"),
    "long label": (with_metadata(labels=json.dumps(["a", "b" * 999, "c"])), "no list"),
    "too many labels": (with_metadata(labels=json.dumps([str(n) for n in range(10_001)])), "no list"),
    "equal labels": (with_metadata(labels='["a", "b", " A"]'), "two are the same"),
    "a label less": (with_metadata(labels='["a", "b"]'), "out.* has the shape"),
    "other law": (with_metadata(law="eps"), "law is 'eps'"),
    "noise_scale a word": (with_metadata(noise_scale="loud"), "noise_scale is 'loud'"),
    "noise_scale 0": (with_metadata(noise_scale="0"), "noise_scale"),
    "noise_scale nan": (with_metadata(noise_scale="nan"), "noise_scale"),
    "latent format": (with_metadata(latent_format="../SD15"), "latent format"),
    "no channels": (with_metadata(channels="0"), "channels is '0'"),
    "channels of no number": (with_metadata(channels="4.0"), "channels is '4.0'"),
    "channels in other digits": (with_metadata(channels="٤"), "channels"),
    "other channels": (with_metadata(channels="16"), r"conv_in.weight has the shape \(16, 4, 3, 3\)"),
    "gigantic width": (with_metadata(width="8" * 5000), "width"),
    "odd width": (with_metadata(width="12"), "multiple of 8"),
    "other width": (with_metadata(width="32"), "has the shape"),
    "other precision": (with_metadata(precision="float32"), "stored as F16, not in float32"),
    "unknown precision": (with_metadata(precision="int8"), "precision is 'int8'"),
    "a tensor less": (without("out.bias"), "'out.bias'"),
    "a tensor more": (with_tensor("extra", lambda _: torch.zeros(1)), "'extra'"),
    "a double": (with_tensor("out.bias", lambda bias: bias.double()), "out.bias is stored as F64"),
    "turned weight": (with_tensor("out.weight", lambda weight: weight.T.contiguous()), "out.weight has the shape"),
    "weight in one more axis": (with_tensor("out.bias", lambda bias: bias[None]), "out.bias has the shape"),
    "nan": (with_tensor("norm.weight", lambda weight: weight * float("nan")), "norm.weight holds NaN"),
    "infinity": (with_tensor("norm.bias", lambda bias: bias + inf), "norm.bias holds NaN"),
}


@pytest.mark.parametrize("change, message", CORRUPTED.values(), ids=CORRUPTED)
def test_other_files_are_refused(tmp_path, change, message):
    good = good_bytes(tmp_path)
    (tmp_path / "bad").write_bytes(change(good))
    with pytest.raises(ValueError, match=message) as caught:
        read_classifier(tmp_path / "bad")
    assert type(caught.value) is ValueError and len(str(caught.value)) < 500


def test_a_file_made_again_unchanged_is_read(tmp_path):
    """What the corruptions above start from is good after the same handling."""
    (tmp_path / "a").write_bytes(remade(good_bytes(tmp_path), lambda metadata, tensors: None))
    assert read_classifier(tmp_path / "a").labels == LABELS


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_classifier(tmp_path / "none")
