"""Fit LoRA on the host: what it fits is a LORA_MODEL of the host's, and the model stays what it was."""

from dataclasses import dataclass, replace
from functools import cache

import comfy.conds
import comfy.model_management
import comfy.sd
import folder_paths
import latent_preview
import node_helpers
import nodes
import pytest
import torch
from comfy_extras import nodes_train
from steer.lab.comfy.runs import counted, encode, host_guider, interrupted, of_host, sampled
from steer.lab.models import stock
from steer.lab.world.data import render, scene_of
from steer.nodes.classifier import SteerClassifierLoss
from steer.nodes.clip_direction import SteerCLIPDirectionLoss
from steer.nodes.fit_lora import SteerFitLoRA
from steer.nodes.host import Differentiable
from steer.nodes.host.lora import layers_of
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.runs import fit_lora as fit_run
from steer.samplers.classifier import Classifier, Network
from steer.samplers.noise_law import VARIANCE_EXPLODING
from steer.tests import oracles
from steer.tests.host_models import EPS, ON_GPU, again, free_memory, mean_conditioning, relative, with_law, with_lora

LEVELS = torch.tensor([0.9, 0.4, 0.0])


@dataclass(frozen=True)
class Level:
    """A loss: the squared distance of the estimate to `target`, one for all pictures or one for each."""

    target: torch.Tensor
    noisy: bool = False
    scale: float = 1.0
    by_picture = ("target",)
    patchers = ()

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        target = self.target.to(run.known.device).reshape(-1, 1, 1, 1)
        return lambda latent, sigma: self.scale * (latent - target).square().flatten(1).mean(1)


LOSS = Level(torch.tensor([0.8]))


@cache
def loaded():
    """The model, its text encoder and VAE, and CLIP's two towers."""
    with torch.inference_mode():
        return *stock.load(), *stock.load_clip_pair()


def case(count=1):
    return inverted(count)


@cache
def inverted(count):
    """The model, a prompt, and (latent, noise, inversion) of pictures, which are small."""
    with torch.inference_mode():
        model, clip, vae, *_ = loaded()
        pictures = torch.stack([torch.from_numpy(render(scene_of(shape, "red", "white")).copy()) for shape in
                                ("star", "heart", "circle")[:count]]).float()[:, ::2, ::2] / 255  # fmt: skip
        positive = encode(clip, "")
        guider = host_guider(model, positive, positive, 1.0)
        return model, positive, SteerDDIMInversion.execute(guider, LEVELS, {"samples": vae.encode(pictures)}, 2,
                                                           1e-4, False).args  # fmt: skip


def fitted(model=None, loss=LOSS, count=1, **inputs):
    ours, positive, (_, _, inversion) = case(count)
    usual = {"positive": positive, "inversion": inversion, "rank": 2, "learning_rate": 1e-3, "iterations": 2,
             "keep": 0.0, "cfg": 1.0, "seed": 5}  # fmt: skip
    return SteerFitLoRA.execute(model=model or ours, loss=loss, **usual | inputs)


def with_model_lora(lora, strength=1.0, model=None):
    return of_host(nodes_train.LoraModelLoader, model or case()[0], lora, strength)


def redrawn(model, count=1):
    _, positive, (latent, noise, _) = case(count)
    return sampled(noise, host_guider(model, positive, positive, 1.0), oracles.EULER, LEVELS, latent)["samples"]


def distance(latent):
    return float((case()[0].model.process_latent_in(latent) - 0.8).square().mean())


def test_what_is_sampled_with_it_comes_closer_and_the_model_is_as_before():
    before = redrawn(case()[0])
    lora, losses, steps = fitted(iterations=4).args
    assert distance(redrawn(with_model_lora(lora))) < 0.9 * distance(before)
    assert torch.equal(redrawn(case()[0]), before)
    assert steps == 8 and len(losses["loss"]) == 4 and losses["loss"][-1] < losses["loss"][0]


def test_its_keys_are_those_of_the_hosts_trainer_and_all_of_them_are_loaded():
    lora, model = fitted().args[0], case()[0]
    layers = layers_of(model)
    assert set(lora) == {f"{layer}.lora_{kind}.weight" for layer in layers for kind in ("up", "down")}
    assert all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in lora.values())
    assert not any(weight.is_inference() or weight.requires_grad for weight in lora.values())
    patched = with_model_lora(lora)
    assert {key.removesuffix(".weight") for key in patched.patches} == set(layers)


def test_strength_0_is_bitwise_the_model_and_more_is_not():
    lora, plain = fitted().args[0], redrawn(case()[0])
    assert torch.equal(redrawn(with_model_lora(lora, 0.0)), plain)
    assert relative(redrawn(with_model_lora(lora, 1.0)), plain) > 1e-3


def test_saved_and_loaded_by_the_hosts_nodes_it_is_the_same(tmp_path, monkeypatch):
    lora, model = fitted().args[0], case()[0]
    in_memory = redrawn(with_model_lora(lora))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    if hasattr(nodes_train.SaveLoRA, "define_schema"):
        nodes_train.SaveLoRA.execute(lora, "fitted", 4)
    else:
        kind = nodes_train.SaveLoRA()
        kind.output_dir = str(tmp_path)
        getattr(kind, kind.FUNCTION)(lora, "fitted", 4)
    (file,) = tmp_path.glob("*.safetensors")
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    assert torch.equal(redrawn(nodes.LoraLoaderModelOnly().load_lora_model_only(model, file.name, 1.0)[0]), in_memory)


def test_a_second_run_repeats_it_and_another_seed_does_not():
    once, twice, other = (fitted(seed=seed).args for seed in (5, 5, 6))
    assert all(again(once[0][name], twice[0][name]) for name in once[0])
    assert once[1] == twice[1] or ON_GPU
    assert any(not torch.equal(once[0][name], other[0][name]) for name in once[0])


def test_without_a_slope_the_lora_stays_zero():
    """A loss of scale 0, and nothing that keeps."""
    lora = fitted(loss=replace(LOSS, scale=0.0)).args[0]
    assert not any(weight.any() for name, weight in lora.items() if "lora_up" in name)
    assert all(weight.any() for name, weight in lora.items() if "lora_down" in name)


def test_what_keeps_an_exact_source_changes_nothing(shapes):
    """A model whose every answer is the picture."""
    _, _, (_, _, inversion) = case()
    model = with_law(case()[0], EPS)
    source = inversion.latents[-1]

    def wrapper(apply_model, args):
        answer = apply_model(args["input"], args["timestep"], **args["c"])
        return source.to(answer) + 0.0 * answer

    model.set_model_unet_function_wrapper(wrapper)
    output = fitted(model, replace(LOSS, scale=0.0), keep=1.0)
    assert output.args[1]["loss"] == [0.0, 0.0]
    assert not any(weight.any() for name, weight in output.args[0].items() if "lora_up" in name)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_the_objectives(monkeypatch, recompute):
    """Of one weight of `up` by finite differences, where the host has loaded the LoRA with it a little up and down."""
    seen, kept = [], fit_run.slopes_of

    def look(*args):
        seen.append(kept(*args))
        return seen[-1]

    monkeypatch.setattr(fit_run, "slopes_of", look)
    if recompute:
        monkeypatch.setattr(Differentiable, "_kept", lambda self, call: None)
    start = fitted(learning_rate=1e-7, iterations=1, seed=3).args[0]
    layers = layers_of(case()[0])
    name = next(layer for layer in layers if layer.endswith("attn2.to_v"))
    place = 2 * layers.index(name) + 1
    gradient = seen[0].gradients[place]
    assert gradient.shape == start[f"{name}.lora_up.weight"].shape and not seen[0].gradients[place - 1].any()
    row, column = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    step, ends = 0.02, []
    _, positive, (_, _, inversion) = case()
    for sign in (1, -1):
        lora = {key: torch.zeros_like(weight) if "lora_up" in key else weight for key, weight in start.items()}
        lora[f"{name}.lora_up.weight"][row, column] = sign * step
        once = fitted(with_model_lora(lora), learning_rate=1e-7, iterations=1)
        assert once.args[2] == 2
        ends.append(seen[-2].value)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[row, column]), rel=0.02)


def test_each_picture_has_its_own_of_the_loss():
    """Targets of each: the same as each alone, where nothing is learned in between."""
    targets = torch.tensor([0.8, -0.5, 0.1])
    together = fitted(loss=Level(targets), count=3, iterations=1, learning_rate=1e-7).args[1]["loss"]
    _, _, (_, _, inversion) = case(3)
    alone = []
    for index, target in enumerate(targets):
        own = replace(inversion, latents=tuple(latent[index, None] for latent in inversion.latents))
        alone += fitted(loss=Level(target[None]), inversion=own, iterations=1, learning_rate=1e-7).args[1]["loss"]
    assert together == pytest.approx(alone, rel=1e-3)


def test_guidance_is_in_it():
    """At cfg 3 with two prompts the objective is that of the guided estimate."""
    positive, negative = (mean_conditioning(mean) for mean in (0.1, -0.1))
    low, high = (fitted(positive=positive, negative=negative, cfg=cfg, iterations=1, learning_rate=1e-7).args[1]["loss"]
                 for cfg in (1.0, 3.0))  # fmt: skip
    assert low != high
    assert fitted(positive=positive, iterations=1, learning_rate=1e-7).args[1]["loss"] == low


@pytest.mark.parametrize("call", [1, 3])
def test_interrupt_leaves_nothing(call):
    ours, before = case()[0], redrawn(case()[0])
    model, rows = interrupted(ours, call)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        fitted(model)
    assert len(rows) == call and torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert not any(
        "added" in str(function) for layer in ours.model.modules() for function in getattr(layer, "weight_function", ())
    )
    assert torch.equal(redrawn(ours), before)


def test_an_error_leaves_nothing():
    before = redrawn(case()[0])
    with pytest.raises(ValueError, match="SteerFitLoRA: the loss is nan at iteration 1, picture 1, sigma 0.9; lower"):
        fitted(loss=Level(torch.tensor([float("nan")])))
    assert torch.equal(redrawn(case()[0]), before)


def test_each_update_is_shown(monkeypatch):
    seen, _ = [], case()  # whose own steps are shown too

    def callback(model, steps):
        return lambda step, denoised, x, total: seen.append((step, tuple(denoised.shape), tuple(x.shape), total, steps))

    monkeypatch.setattr(latent_preview, "prepare_callback", callback)
    fitted()
    assert seen == [(step, (1, 4, 8, 8), (1, 4, 8, 8), 4, 4) for step in range(4)]


def test_too_little_memory_is_said_with_what_helps(monkeypatch):
    model, rows = counted(case()[0])
    monkeypatch.setattr(comfy.model_management, "get_free_memory", free_memory(lambda: 2**10))
    with pytest.raises(ValueError, match="SteerFitLoRA: .*memory.*fewer or smaller cutouts, or smaller pictures"):
        fitted(model)
    assert len(rows) == 2  # with activations kept, and computed again


def test_where_activations_are_computed_again_it_is_the_same(monkeypatch):
    kept = fitted().args
    monkeypatch.setattr(Differentiable, "_kept", lambda self, call: None)
    recomputed = fitted().args
    assert recomputed[1]["loss"] == pytest.approx(kept[1]["loss"], rel=1e-4)
    name = next(iter(kept[0]))
    assert relative(recomputed[0][name], kept[0][name]) < 1e-2


def test_it_is_fitted_on_top_of_a_loaded_lora():
    model = with_lora(case()[0])
    lora, losses, _ = fitted(model, iterations=4).args
    assert losses["loss"] != fitted(iterations=4).args[1]["loss"]
    assert distance(redrawn(with_model_lora(lora, model=model))) < 0.9 * distance(redrawn(model))


def test_a_classifiers_loss_is_of_the_latent_after_the_step():
    torch.manual_seed(0)
    law, format_name = VARIANCE_EXPLODING, "SD15"
    network = Network(4, 8, 2).requires_grad_(False).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    loss = SteerClassifierLoss.execute(Classifier(("a", "b"), law, format_name, network), "a")[0]
    losses = fitted(loss=loss, iterations=6).args[1]["loss"]
    assert losses[-1] < losses[0]


def direction(count, images=None):
    _, _, vae, clip, vision = loaded()
    pictures = torch.rand(count if images is None else images, 64, 64, 3)
    texts = "a red star on a white background", "a blue star on a white background"
    return SteerCLIPDirectionLoss.execute(vision, vae, clip, pictures, *texts, 1, 0.9)[0]


def test_a_direction_loss_goes_through_decoder_and_tower():
    lora, losses, _ = fitted(loss=direction(2), count=2, iterations=1).args
    assert all(0.0 < loss < 2.0 for loss in losses["loss"]) and len(losses["loss"]) == 2
    assert any(weight.any() for name, weight in lora.items() if "lora_up" in name)


class TestBadInput:
    def refused(self, message, model=None, **inputs):
        """Before the first model call, and the model is as before."""
        model, rows = counted(model or case()[0])
        with pytest.raises(ValueError, match=f"SteerFitLoRA: .*{message}"):
            fitted(model, **inputs)
        assert not rows

    @pytest.mark.parametrize("name, value", [("rank", 0), ("learning_rate", 0.0), ("iterations", 0), ("keep", -1.0)])
    def test_numbers(self, name, value):
        self.refused(f"{name} is", **{name: value})

    def test_another_model(self):
        _, _, (_, _, inversion) = case()
        self.refused("SDXL latents.*made with", inversion=replace(inversion, latent_format="SDXL"))

    def test_cfg_without_a_negative(self):
        self.refused("cfg is 4, which needs a negative", cfg=4.0)

    def test_frames(self):
        _, _, (_, _, inversion) = case()
        clip = replace(
            inversion, latents=tuple(latent[:, :, None].repeat(1, 1, 3, 1, 1) for latent in inversion.latents)
        )
        self.refused("3 frames; a LoRA is fitted to single pictures", inversion=clip)

    def test_counts_of_the_loss(self):
        self.refused("the loss has 2 of target and the inversion 3 pictures", loss=Level(torch.zeros(2)), count=3)
        self.refused("1 image and the inversion 2 pictures, and the change of each is measured from its own",
                     loss=direction(2, images=1), count=2)  # fmt: skip

    def test_images_in_another_order(self):
        """Of decoded latents, each is at its own place or is not."""
        model, _, (_, _, inversion) = case(3)
        own = loaded()[2].decode(model.model.process_latent_out(inversion.latents[-1]))
        right, turned = (replace(direction(3), image=images) for images in (own, own.roll(1, 0)))
        fitted(loss=right, count=3, iterations=1)
        self.refused("image 2 of the loss is picture 1 of the inversion", loss=turned, count=3)

    def test_images_of_another_size(self):
        self.refused("image is 32x32 and the picture", loss=replace(direction(1), image=torch.rand(1, 32, 32, 3)))

    def test_prompts_for_each_picture(self):
        text = case()[1][0][0]
        self.refused("positive holds 2 prompts; give one", positive=[[text.repeat(2, 1, 1), {}]])
        self.refused("negative holds no conditioning", negative=[])

    def test_a_controlnet_with_several_pictures(self):
        control = type("Control", (), {"cond_hint_original": torch.zeros(2, 3, 8, 8)})()
        with_control = node_helpers.conditioning_set_values(case()[1], {"control": control})
        self.refused("positive has a ControlNet with 2 pictures", positive=with_control)

    def test_a_model_that_is_given_each_picture(self, monkeypatch):
        model = case()[0].model
        before = model.extra_conds

        def extra_conds(**given):
            return {**before(**given), "c_concat": comfy.conds.CONDRegular(given["noise"])}

        monkeypatch.setattr(model, "extra_conds", extra_conds)
        self.refused("picture beside x, as for inpainting, and the inversion is of 2; invert one", count=2,
                     loss=Level(torch.zeros(2)))  # fmt: skip

    def test_a_model_that_skips_calls(self):
        model = case()[0].clone()
        model.model_options["transformer_options"] = {"easycache": object()}
        self.refused("EasyCache", model)

    def test_weights_of_another_packs_quantisation(self, monkeypatch):
        monkeypatch.setattr("steer.nodes.host.lora._can_be_fitted", lambda weight: False)
        self.refused("no weights that a LoRA of ComfyUI can change.*GGUF")


def test_a_model_whose_estimate_has_no_weights_in_it():
    model = case()[0].clone()
    model.set_model_unet_function_wrapper(lambda apply_model, args: 0.5 * args["input"])
    with pytest.raises(ValueError, match="SteerFitLoRA: a patch on the model cuts its estimate off from its weights"):
        fitted(model)


def test_the_hosts_trainer_and_ours_name_the_same_layers():
    """In the host's own words: those that it makes an adapter for, of weights with two dimensions or more."""
    network = case()[0].model
    theirs = {
        name
        for name, layer in network.named_modules()
        if hasattr(layer, "weight_function") and layer.weight is not None and layer.weight.ndim > 1
    }
    assert set(layers_of(case()[0])) == theirs


def on_family(family):
    """A few updates of a constant level: the loss falls."""
    latent, start, inversion, sigmas = oracles.inversion_of(family)
    loss = Level(torch.tensor([0.3]))
    prompt = family.prompt(oracles.SOURCE)
    losses = SteerFitLoRA.execute(family.model(), prompt, loss, inversion, 2, 1e-3, 3, 0.0, 1.0, 0).args[1]["loss"]
    assert losses[-1] < losses[0]


def check_lora(world, given, run, output):
    lora, losses, steps = output
    pictures, sigmas = len(given["inversion"].latents[0]), given["inversion"].sigmas
    assert steps == given["iterations"] * pictures * (len(sigmas) - 1)
    assert len(losses["loss"]) == given["iterations"] * pictures
    assert all(torch.isfinite(weight).all() for weight in lora.values())
    assert {weight.shape[1] for name, weight in lora.items() if "lora_up" in name} == {given["rank"]}


ORACLE = {"SteerFitLoRA": ("the loss falls from update to update", on_family)}
CHECK = {"SteerFitLoRA": (check_lora, ())}
USUAL = {"SteerFitLoRA": {"rank": (1, 2), "learning_rate": (1e-3, 1e-5), "iterations": (1, 2), "keep": (0.0, 1.0)}}
