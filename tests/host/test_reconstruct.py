"""The decoder and the latent fitted to a picture, through the host's VAEs: as published, and the VAE as it was."""

import copy
import gc
from functools import partial

import comfy.model_management
import comfy.utils
import nodes
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.pixel_space_convert import PixelspaceConversionVAE
from steer.lab.comfy.random_models import random_kl
from steer.lab.comfy.runs import noise_of
from steer.lab.world.inputs import photo
from steer.lab.world.metrics import psnr
from steer.nodes.host import vae as host_vae
from steer.nodes.host.gradients.model import Differentiable
from steer.nodes.host.gradients.tensors import gradients
from steer.nodes.host.gradients.weights import own_weights
from steer.nodes.host.vae import decoded, loaded, memory_needed
from steer.nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent
from steer.nodes.runs import reconstruct as reconstruct_run
from steer.nodes.runs.reconstruct import Problem
from steer.tests import checks, oracles
from steer.tests.cases import in_pairs, some
from steer.tests.host_models import ON_GPU, relative
from torch.nn.functional import mse_loss
from torchvision.transforms.functional import pil_to_tensor

SIZE = 64


def mask_of(batch=1, size=SIZE):
    mask = torch.zeros(batch, size, size)
    for index in range(batch):
        mask[index, 8 : 40 + 8 * index, 16:48] = 1
    return mask


def source_of(batch=1, size=SIZE, seed=1):
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").movedim(1, -1)


@pytest.fixture(scope="module")
def kl():
    with torch.inference_mode():
        return random_kl()


@pytest.fixture
def vaes(shapes, kl):
    return {"taesd": shapes[2], "kl": kl}


ROUNDING = 0.02 if ON_GPU else 1e-4
"""What four updates make of the rounding of gradients near 0, of which Adam's first step reads the sign alone."""
KINDS = pytest.mark.parametrize("kind", ["taesd", "kl"])


def latent_of(batch=1, seed=0):
    return noise_of((batch, 4, SIZE // 8, SIZE // 8), seed)


def by_decoder(vae, source, latent, mask, steps=4, rate=1e-3):
    return SteerReconstructDecoder.execute(vae, source, {"samples": latent}, mask, steps, rate)[0]


def by_latent(vae, source, latent, mask, steps=4, rate=0.1):
    return SteerReconstructLatent.execute(vae, source, {"samples": latent}, mask, steps, rate)[0]["samples"]


NODES = {"decoder": by_decoder, "latent": by_latent}
BOTH = pytest.mark.parametrize("node", NODES)


def state(vae):
    """All that a run may not change: weights, their flags, the layers' own attributes, and a decoding."""
    model, picture = vae.first_stage_model, vae.decode(latent_of())  # which has it loaded
    weights = {name: (weight.clone(), weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}
    layers = {name: sorted(vars(layer)) for name, layer in model.named_modules()}
    hooks = [getattr(layer, kind, []) for layer in model.modules() for kind in ("weight_function", "bias_function")]
    return weights, layers, any(hooks), picture


def same_state(a, b):
    return (
        a[1:3] == b[1:3]
        and torch.equal(a[3], b[3])
        and all(torch.equal(a[0][name][0], b[0][name][0]) and a[0][name][1:] == b[0][name][1:] for name in a[0])
    )


def published(vae, source, latent, mask, steps, rate, latents=False):
    """The authors' loop on a deep copy of the VAE in plain PyTorch: pictures in -1..1, torch's Adam."""
    with torch.inference_mode(False), torch.enable_grad():
        model = copy.deepcopy(vae.first_stage_model).float().cpu()
        for weight in model.parameters():
            weight.data = weight.detach().clone()
            weight.requires_grad_()
        latent, source, mask = latent.clone(), source.movedim(-1, 1).clone() * 2 - 1, mask[:, None].clone()
        decoder = getattr(model, "taesd_decoder", None) or [
            *model.decoder.parameters(),
            *model.post_quant_conv.parameters(),
        ]
        decoder = list(decoder.parameters()) if isinstance(decoder, torch.nn.Module) else decoder
        fitted = [latent.requires_grad_()] if latents else decoder
        optimizer, foreground = torch.optim.Adam(fitted, lr=rate), model.decode(latent).detach()
        for _ in range(steps):
            picture = model.decode(latent)
            loss = mse_loss(foreground * mask, picture * mask)
            loss = loss + 100 * mse_loss(source * (1 - mask), picture * (1 - mask))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return latent.detach() if latents else (model.decode(latent).detach() / 2 + 0.5).clamp(0, 1).movedim(1, -1)


@KINDS
def test_the_picture_is_the_published_loops(vaes, kind):
    given = vaes[kind], source_of(), latent_of(), mask_of()
    out, expected = by_decoder(*given, rate=1e-4), published(*given, 4, 1e-4)
    untouched = vaes[kind].decode(latent_of())
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-3)
    assert (out - expected).abs().mean() < 0.02 * (out - untouched).abs().mean()


@KINDS
def test_the_latent_is_the_published_loops(vaes, kind):
    """At the published rate on a latent of unit deviation; on one of another scale the steps are of that scale."""
    latent = latent_of() / latent_of().std()
    given = vaes[kind], source_of(), latent, mask_of()
    torch.testing.assert_close(by_latent(*given), published(*given, 4, 0.1, latents=True), rtol=0, atol=1e-3)
    three = vaes[kind], source_of(), 3 * latent, mask_of()
    torch.testing.assert_close(by_latent(*three), published(*three, 4, 0.3, latents=True), rtol=0, atol=3e-3)


@pytest.mark.slow
def test_the_background_comes_back_and_the_edit_stays(shapes):
    """A real picture through a whole VAE round trip: the decoder by 6 dB and more than the latent."""
    vae, mask = shapes[2], mask_of(size=128)
    source = pil_to_tensor(photo()).movedim(0, -1)[None].float() / 255
    latent = vae.encode(source)
    plain, kept = vae.decode(latent)[0], mask[0] == 0
    fitted = by_decoder(vae, source, latent, mask, 40, 1e-4)[0]
    moved = vae.decode(by_latent(vae, source, latent, mask, 40, 0.1))[0]
    outside = [psnr(picture, source[0], kept) for picture in (plain, moved, fitted)]
    assert outside[0] + 3 < outside[1] and outside[1] < outside[2] and outside[0] + 6 < outside[2]
    assert psnr(fitted, plain, ~kept) > psnr(fitted, plain, kept) and psnr(fitted, plain, ~kept) > 35


@KINDS
def test_nothing_to_do_moves_no_weight(vaes, kind):
    """Source and foreground both what is decoded: loss 0 at every update, and the copies are the weights, bitwise."""
    vae, losses = vaes[kind], []
    latent = latent_of().to(vae.device)
    with loaded("test", vae, latent.shape, weights=True) as decoder, own_weights(vae.first_stage_model) as weights:
        with gradients():
            exact = decoded(vae, decoder, latent, torch.float32).detach()
        problem = Problem(exact.movedim(1, -1), latent, mask_of(), 5, 1e-2)
        for item in problem.fit(vae, decoder, latent, lambda: list(weights.values())):
            losses.append(item.loss)
            assert torch.equal(item.picture, exact)
        own = dict(vae.first_stage_model.named_parameters())
        assert losses == [0.0] * 6 and len(weights) > 20
        assert all(torch.equal(weight, own[name]) for name, weight in weights.items())
        # every weight of the decoder has its copy
        assert {name for name in own if "decoder" in name} <= set(weights)
        assert not any("encoder" in name for name in weights)
    assert not weights


@BOTH
@KINDS
def test_a_full_mask_leaves_all_as_it_decodes(vaes, kind, node):
    vae, latent = vaes[kind], latent_of()
    out = NODES[node](vae, source_of(), latent, torch.ones(1, SIZE, SIZE))
    if node == "latent":
        assert torch.equal(out, latent)
    else:
        torch.testing.assert_close(out, vae.decode(latent), rtol=0, atol=1e-5)


@BOTH
def test_a_batch_is_its_singles(shapes, node):
    """Each picture has a decoder of its own: bitwise."""
    source, latent, mask = source_of(3), latent_of(3), mask_of(3)
    together = NODES[node](shapes[2], source, latent, mask)
    singles = [NODES[node](shapes[2], *(given[i : i + 1] for given in (source, latent, mask))) for i in range(3)]
    assert torch.equal(together, torch.cat(singles))
    shared = NODES[node](shapes[2], source[:1], latent[:2], mask[:1])
    again = NODES[node](shapes[2], source[:1], latent[1:2], mask[:1])
    assert torch.equal(shared[1:], again)


@pytest.mark.parametrize("how, kind, node", in_pairs(["success", "failure", "interrupt", "refusal"], ["taesd", "kl"],
                         list(NODES)))  # fmt: skip
def test_the_vae_is_as_before(vaes, kind, node, how, monkeypatch):
    vae = vaes[kind]
    before, shown = state(vae), []
    show = reconstruct_run.Progress.show

    def stopping(progress, item):
        shown.append(item.updates)
        if len(shown) == 3 and how == "failure":
            raise RuntimeError("stop")
        if len(shown) == 3 and how == "interrupt":
            comfy.model_management.interrupt_current_processing()
        show(progress, item)

    monkeypatch.setattr(reconstruct_run.Progress, "show", stopping)
    expected = {
        "failure": RuntimeError,
        "interrupt": comfy.model_management.InterruptProcessingException,
        "refusal": ValueError,
    }
    try:
        if how == "success":
            NODES[node](vae, source_of(2), latent_of(2), mask_of(2))
        else:
            source = source_of() * (float("nan") if how == "refusal" else 1)
            with pytest.raises(expected[how]):
                NODES[node](vae, source, latent_of(), mask_of())
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(shown) == {"success": 10, "refusal": 0}.get(how, 3)
    assert same_state(state(vae), before)


@pytest.mark.parametrize("node", some(NODES, "latent"))
def test_memory_is_where_it_was(shapes, node):
    def alive():
        gc.collect()
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        return len(tensors), sum(each.numel() * each.element_size() for each in tensors)

    counts = []
    for _ in range(4):
        NODES[node](shapes[2], source_of(), latent_of(), mask_of(), 2)
        counts.append(alive())
    assert counts[1] == counts[2] == counts[3]


def test_memory_after_an_interrupt_while_its_traceback_is_kept(shapes, monkeypatch):
    """The copies and the optimizer's moments are gone at once, not when the error is forgotten."""
    sizes = []

    def stop(progress, item):
        if item.updates == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(reconstruct_run.Progress, "show", stop)
    smallest = min(weight.numel() for weight in shapes[2].first_stage_model.taesd_decoder.parameters())

    def parameters_alive():
        gc.collect()
        return sum(isinstance(each, torch.Tensor) and each.numel() > smallest for each in gc.get_objects())

    shapes[2].decode(latent_of())  # loaded
    before = parameters_alive()
    with pytest.raises(KeyboardInterrupt) as kept:
        by_decoder(shapes[2], source_of(), latent_of(), mask_of())
    sizes.append(parameters_alive())
    assert kept.tb is not None and sizes[0] < before + 30  # the copies with their moments would be three times 60


@pytest.mark.parametrize("dtype", some([torch.bfloat16, torch.float16], torch.bfloat16))
def test_a_vae_in_half_precision_is_fitted_in_float32(kl, dtype):
    """The same as a float32 VAE of the rounded weights; the weights stay rounded."""
    half, whole = random_kl(dtype=dtype), random_kl(dtype=torch.float32)
    for name, weight in whole.first_stage_model.named_parameters():
        weight.copy_(half.first_stage_model.get_parameter(name).float())
    given = source_of(), latent_of(), mask_of()
    torch.testing.assert_close(by_decoder(half, *given), by_decoder(whole, *given), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(by_latent(half, *given), by_latent(whole, *given), rtol=0, atol=1e-3)
    assert {weight.dtype for weight in half.first_stage_model.parameters()} == {dtype}


@pytest.mark.parametrize("recompute", some([True, False], True))
def test_activations_computed_again_are_the_same(kl, recompute, monkeypatch):
    expected = by_decoder(kl, source_of(), latent_of(), mask_of())
    monkeypatch.setattr(host_vae, "Differentiable", partial(Differentiable, recompute=recompute))
    out = by_decoder(kl, source_of(), latent_of(), mask_of())
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    moved = by_latent(kl, source_of(), latent_of(), mask_of())
    monkeypatch.undo()
    torch.testing.assert_close(moved, by_latent(kl, source_of(), latent_of(), mask_of()), rtol=0, atol=1e-3)


def test_weights_kept_away_between_layers_and_patched_ones(kl, monkeypatch):
    """The host's low-memory loading, with a patch on the weights that it then adds as a layer is called."""
    patched = copy.copy(kl)
    patched.patcher = kl.patcher.clone()
    names = [name for name in kl.first_stage_model.state_dict() if name.startswith("decoder.up") and "conv" in name]
    patched.patcher.add_patches(
        {name: (0.1 * torch.ones_like(kl.first_stage_model.state_dict()[name]),) for name in names}
    )
    given = source_of(), latent_of(), mask_of()
    expected = by_decoder(patched, *given)
    assert relative(expected, by_decoder(kl, *given)) > 0.01
    comfy.model_management.unload_all_models()
    load = comfy.model_management.load_models_gpu

    def low(models, **kwargs):
        comfy.model_management.unload_all_models()
        models[0].patch_model(torch.device("cpu"), lowvram_model_memory=1)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", low)
    try:
        torch.testing.assert_close(by_decoder(patched, *given), expected, rtol=0, atol=ROUNDING)
    finally:
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
        patched.patcher.unpatch_model(torch.device("cpu"))


def test_masks_of_latents_and_of_pixels(shapes):
    pixels = mask_of()
    latents = pixels[:, ::8, ::8]
    given = shapes[2], source_of(), latent_of()
    assert torch.equal(by_decoder(*given, pixels, 2), by_decoder(*given, latents, 2))


def test_the_latent_keeps_what_came_with_it(shapes):
    given = {"samples": latent_of().half(), "noise_mask": mask_of(), "batch_index": [3]}
    samples = given["samples"].clone()
    out = SteerReconstructLatent.execute(shapes[2], source_of(), given, mask_of(), 2, 0.1)[0]
    assert torch.equal(given["samples"], samples) and not torch.equal(out["samples"], samples)
    assert out["samples"].dtype == torch.half and out["noise_mask"] is given["noise_mask"]
    assert out["batch_index"] == [3]


def test_the_best_picture_is_kept(shapes):
    """At a rate that overshoots, what is returned is no worse than the start."""
    source, latent, mask = source_of(), latent_of(), mask_of()
    losses = []
    with loaded("test", shapes[2], latent.shape, True) as decoder:
        problem = Problem(source, latent, mask, 6, 0.03)
        out = reconstruct_run.fitted_picture(shapes[2], decoder, problem, lambda item: losses.append(item.loss))
    assert max(losses) > losses[0]
    first = by_decoder(shapes[2], source, latent, torch.ones(1, SIZE, SIZE), 1)
    assert min(losses) < losses[0] or torch.equal(out, first)


@pytest.mark.parametrize("method, wanted", [("auto", True), ("none", False)])
def test_progress_and_previews(shapes, method, wanted, monkeypatch):
    seen = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod(method))
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append((value, total, preview))
    )
    by_decoder(shapes[2], source_of(2), latent_of(2), mask_of(), 3)
    assert seen[-1][:2] == (8, 8) and [value for value, *_ in seen] == sorted(value for value, *_ in seen)
    previews = [preview for *_, preview in seen if preview is not None]
    assert len(previews) == (8 if wanted else 0)
    assert all(kind == "JPEG" and picture.size == (SIZE, SIZE) for kind, picture, _ in previews)


def refused(node, message, vae, source=None, latent=None, mask=None, **settings):
    given = [source_of(), latent_of(), mask_of()]
    given = [new if new is not None else old for new, old in zip((source, latent, mask), given, strict=True)]
    with pytest.raises(ValueError, match=f"^SteerReconstruct(Latent|Decoder): .*{message}"):
        NODES[node](vae, *given, **settings)


@BOTH
def test_what_does_not_fit(shapes, node, monkeypatch):
    vae = shapes[2]
    monkeypatch.setattr(vae.first_stage_model, "decode", None)  # nothing may be decoded
    refused(node, "source is 48x64 and latent decodes to 64x64.*multiples of 8", vae, source=source_of()[:, :, :48])
    refused(node, "latent decodes to 128x128", vae, latent=noise_of((1, 4, 16, 16)))
    refused(node, "mask is 32x64 and the picture 64x64", vae, mask=torch.ones(1, 64, 32))
    refused(node, "2 of latent, 3 of source", vae, source=source_of(3), latent=latent_of(2))
    refused(node, "2 sources or masks for one latent", vae, mask=mask_of(2))
    refused(node, "latent has 16 channels and vae 4", vae, latent=noise_of((1, 16, 8, 8)))
    refused(node, "latent is of shape .1, 4, 3, 8, 8.*single pictures", vae, latent=noise_of((1, 4, 3, 8, 8)))
    refused(node, "latent holds NaN", vae, latent=latent_of() * float("nan"))
    refused(node, "source holds NaN", vae, source=source_of() * float("inf"))
    refused(node, "mask runs from 0 to 255", vae, mask=mask_of() * 255)
    refused(node, "steps is 0", vae, steps=0)
    refused(node, "learning_rate is nan", vae, rate=float("nan"))
    refused(node, "learning_rate is 0", vae, rate=0.0)


def without_decoder(vae, model, **changes):
    other = copy.copy(vae)
    other.first_stage_model = model
    for name, value in changes.items():
        setattr(other, name, value)
    return other


@BOTH
def test_a_vae_without_a_decoder_to_change(shapes, node):
    refused(node, "vae .PixelspaceConversionVAE. has no decoder", without_decoder(shapes[2], PixelspaceConversionVAE()))
    refused(node, "vae .none. has no decoder", without_decoder(shapes[2], None))
    refused(node, "vae .Linear. has no decoder", without_decoder(shapes[2], torch.nn.Linear(2, 2)))
    video = without_decoder(shapes[2], shapes[2].first_stage_model, latent_dim=3)
    refused(node, "latents of 3 dimensions.*not clips", video)


@BOTH
def test_too_little_memory_is_said_before_anything_runs(shapes, node, monkeypatch):
    vae, free = shapes[2], comfy.model_management.get_free_memory
    needed = memory_needed(vae, latent_of().shape, node == "decoder")

    def little(device=None, torch_free_too=False):
        return (needed / 2, needed / 2) if torch_free_too else needed / 2

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    monkeypatch.setattr(vae.first_stage_model, "decode", None)
    refused(node, r"0\.\d\d GiB of memory are needed.*0\.\d\d are free.*smaller picture", vae)
    assert free is not little


def test_running_out_of_memory_says_what_would_help(shapes, monkeypatch):
    def out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = state(shapes[2])
    monkeypatch.setattr(reconstruct_run, "fitted_picture", out)
    monkeypatch.setattr("steer.nodes.reconstruct.fitted_picture", out)
    with pytest.raises(torch.OutOfMemoryError, match="SteerReconstructDecoder: .*smaller picture.*CUDA out of memory"):
        by_decoder(shapes[2], source_of(), latent_of(), mask_of())
    assert same_state(state(shapes[2]), before)


def reconstruct_latent_on_family(family):
    source, latent, edited, mask = oracles.background(family)
    fitted = SteerReconstructLatent.execute(family.vae(), source, {"samples": latent}, mask, 8, 0.05)[0]
    assert oracles.background_error(
        nodes.VAEDecode().decode(family.vae(), fitted)[0], family
    ) < 0.9 * oracles.background_error(edited, family)


def reconstruct_decoder_on_family(family):
    source, latent, edited, mask = oracles.background(family)
    fitted = SteerReconstructDecoder.execute(family.vae(), source, {"samples": latent}, mask, 16, 1e-4)[0]
    assert oracles.background_error(fitted, family) < 0.9 * oracles.background_error(edited, family)


def check_fitted_latent(world, given, run, output):
    found, samples = output[0], given["latent"]["samples"]
    assert {*found} == {*given["latent"]} and found["samples"].shape == samples.shape
    assert found["samples"].dtype == samples.dtype and torch.isfinite(found["samples"]).all()


def check_fitted_picture(world, given, run, output):
    samples = given["latent"]["samples"]
    checks.check_picture(output[0], len(samples), *(8 * side for side in samples.shape[-2:]))


ORACLE = {
    "SteerReconstructLatent": ("the decoded background comes nearer to the source", reconstruct_latent_on_family),
    "SteerReconstructDecoder": ("the decoded background comes nearer to the source", reconstruct_decoder_on_family),
}
CHECK = {
    "SteerReconstructLatent": (check_fitted_latent, ()),
    "SteerReconstructDecoder": (check_fitted_picture, ()),
}
USUAL = {
    "SteerReconstructLatent": {"steps": (1, 2), "learning_rate": (0.01, 0.0001)},
    "SteerReconstructDecoder": {"steps": (1, 2), "learning_rate": (0.01, 0.0001)},
}
