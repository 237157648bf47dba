"""Gradients through the host's models: right, from inference mode, and the model as it was afterwards."""

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.samplers
import pytest
import torch
from steer.lab.comfy.random_models import tiny_flux
from steer.lab.comfy.runs import encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.host.gradients.model import Differentiable
from steer.nodes.host.gradients.recompute import blocks_of
from steer.nodes.host.gradients.tensors import gradients
from steer.nodes.host.gradients.tensors import graph_within as graph_within
from steer.tests.host_models import free_memory

DEVICE = comfy.model_management.get_torch_device()
X, CONTEXT = noise_of((1, 4, 16, 16)).to(DEVICE), noise_of((1, 77, 128), 1).to(DEVICE)
SIGMA = torch.tensor([2.0], device=DEVICE)


def loaded(shapes, recompute=False):
    differentiable = Differentiable(shapes[0], recompute)
    comfy.model_management.load_models_gpu([differentiable.patcher])
    return differentiable


def predict(differentiable, x, context, options=None):
    model = differentiable.patcher.model
    return model.apply_model(x, SIGMA, c_crossattn=context, transformer_options=options or {})


def gradients_of(differentiable, options=None):
    """(the prediction, its squares' gradient by x and by the context)."""
    with gradients():
        x, context = X.clone().requires_grad_(), CONTEXT.clone().requires_grad_()
        denoised = differentiable(lambda: predict(differentiable, x, context, options))
        return denoised.detach(), *torch.autograd.grad((denoised * denoised).sum(), (x, context))


def sampled(shapes):
    conds = [encode(shapes[1], text) for text in ("a red circle on a blue background", "")]
    euler = comfy.samplers.sampler_object("euler")
    return run(host_guider(shapes[0], *conds, 4.0), euler, sigmas_of(shapes[0], 3), noise_of((1, 4, 16, 16)))


@pytest.mark.parametrize("recompute", [False, True])
def test_are_the_finite_differences(shapes, recompute):
    differentiable = loaded(shapes, recompute)
    denoised, by_x, by_context = gradients_of(differentiable)
    torch.testing.assert_close(denoised, predict(differentiable, X, CONTEXT), rtol=1e-5, atol=1e-5)
    model = differentiable.patcher.model
    for which, gradient in enumerate((by_x, by_context)):
        direction = gradient / gradient.norm() + 0.3 * noise_of(gradient.shape, 5).to(DEVICE) / gradient.numel() ** 0.5
        ends = []
        for step in (1e-2, -1e-2):
            given = [X, CONTEXT]
            given[which] = given[which] + step * direction
            denoised = model.apply_model(given[0], SIGMA, c_crossattn=given[1], transformer_options={})
            ends.append(denoised.double().square().sum())
        difference = float(ends[0] - ends[1]) / 2e-2
        assert difference == pytest.approx(float((gradient * direction).sum()), rel=0.01)


def test_recomputed_are_the_same_and_leave_the_blocks(shapes):
    kept, again = gradients_of(loaded(shapes)), gradients_of(loaded(shapes, True))
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert len(blocks_of(shapes[0].model)) > 10
    assert not any("forward" in vars(module) for module in shapes[0].model.modules())


def test_recomputed_where_the_graph_does_not_fit(shapes, monkeypatch):
    fits = loaded(shapes, None)
    expected = gradients_of(fits)
    assert fits.recompute is False
    little = 0.9 * fits.needed
    monkeypatch.setattr(comfy.model_management, "get_free_memory", free_memory(lambda: little))
    not_fitting = loaded(shapes, None)
    for a, b in zip(gradients_of(not_fitting), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not_fitting.recompute is True


def test_recomputed_from_the_first_call_that_does_not_fit(shapes, monkeypatch):
    """A later one may take more than the first: a prompt more, say."""
    differentiable, expected = loaded(shapes, None), gradients_of(loaded(shapes))
    gradients_of(differentiable)
    little = 0.9 * differentiable.needed
    monkeypatch.setattr(comfy.model_management, "get_free_memory", free_memory(lambda: little))
    for a, b in zip(gradients_of(differentiable), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert differentiable.recompute is True


@pytest.mark.parametrize("helps", [True, False])
def test_models_that_the_run_does_not_use_make_room(shapes, monkeypatch, helps):
    """On devices with a memory of their own, which the host does not count as free while other models are there."""
    differentiable, unloaded, management = loaded(shapes, None), [], comfy.model_management
    expected, needed = gradients_of(differentiable), differentiable.needed
    differentiable.recompute = None
    free = [0.9 * needed]

    def unload(asked, device, keep_loaded):
        assert asked >= needed and any(each.model is differentiable.patcher for each in keep_loaded)
        unloaded.append(device)
        free[0] = needed if helps else free[0]
        return [object()]

    monkeypatch.setattr(management, "get_free_memory", free_memory(lambda: free[0]))
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "free_memory", unload)
    for a, b in zip(gradients_of(differentiable), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert unloaded == [differentiable.patcher.load_device] and differentiable.recompute is not helps


def test_blocks_see_their_own_options_when_recomputed(shapes):
    """A patch that acts in one block only acts there on the way back too."""
    seen = []

    def patch(q, context, value, options):
        seen.append((options["block"], options["block_index"]))
        return q, context, value

    gradients_of(loaded(shapes, True), {"patches": {"attn2_patch": [patch]}})
    half = len(seen) // 2
    assert len(seen) == 2 * half and set(seen[:half]) == set(seen[half:]) and len(set(seen[:half])) > 3


def test_a_block_that_lets_no_gradient_through(shapes, monkeypatch):
    """Recomputed or not, the gradient takes the other ways."""
    for block in shapes[0].model.diffusion_model.middle_block:
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda *args, call=forward, **kwargs: call(*args, **kwargs).detach())
    kept, again = (gradients_of(loaded(shapes, recompute)) for recompute in (False, True))
    assert all(gradient.any() for gradient in kept[1:])
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_sampling_before_and_after_is_bitwise_the_same(shapes):
    before, weights = sampled(shapes), {name: w.clone() for name, w in shapes[0].model.named_parameters()}
    differentiated = [weight.requires_grad for weight in shapes[0].model.parameters()]
    for recompute in (False, True):
        gradients_of(loaded(shapes, recompute))
    assert all(torch.equal(weight, weights[name]) for name, weight in shapes[0].model.named_parameters())
    assert torch.equal(sampled(shapes), before)
    assert differentiated == [weight.requires_grad for weight in shapes[0].model.parameters()]
    assert not any(getattr(module, "weight_function", None) for module in shapes[0].model.modules())


def test_with_weights_kept_away_between_layers(shapes):
    """The host's low-memory loading, in which a layer's weights are cast as it is called."""
    expected = gradients_of(loaded(shapes))
    differentiable = Differentiable(shapes[0], False)
    comfy.model_management.unload_all_models()
    differentiable.patcher.patch_model(torch.device("cpu"), lowvram_model_memory=1)
    try:
        assert any(getattr(module, "comfy_cast_weights", False) for module in shapes[0].model.modules())
        for a, b in zip(gradients_of(differentiable), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    finally:
        differentiable.patcher.unpatch_model(torch.device("cpu"))


def test_weights_at_hand_are_not_copied(shapes):
    """For a small picture the way back keeps less than the weights are."""
    differentiable = loaded(shapes)
    model = differentiable.patcher.model
    limit = 0.5 * sum(weight.nbytes for weight in model.parameters())
    with gradients():
        x = noise_of((1, 4, 8, 8)).to(DEVICE).requires_grad_()
        with graph_within(limit, model):
            denoised = predict(differentiable, x, CONTEXT)
        (gradient,) = torch.autograd.grad(denoised.square().sum(), x)
    assert gradient.abs().sum() > 0


def test_a_buffer_of_the_host_can_be_filled(shapes):
    """The host copies offloaded weights into a buffer it made in inference mode, and uses it for the next layer too."""
    buffer = torch.zeros(8)
    with gradients():
        value = torch.ones(8, requires_grad=True)
        kept = []
        for weight in (2.0, 3.0):
            buffer[:].copy_(torch.full((8,), weight))
            kept.append((value * buffer).sum())
        (gradient,) = torch.autograd.grad(kept[0] + 10 * kept[1], value)
    assert torch.equal(gradient, torch.full((8,), 32.0))


def test_a_model_of_the_host_can_be_moved(shapes):
    """The host brings a T2I-Adapter, whose weights say that they want gradients, to the GPU as it is called."""
    layer = torch.nn.Linear(8, 8)
    assert layer.weight.is_inference() and layer.weight.requires_grad
    with gradients():
        layer.to(torch.float64)
        x = torch.ones(8, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert layer.weight.dtype == torch.float64
    torch.testing.assert_close(gradient, layer.weight.detach().sum(0))


def check_by_differences(differentiable, call, given):
    """The gradient of the squares of `call(given)`, against finite differences."""
    plain = call(given)
    with gradients():
        asked = given.clone().requires_grad_()
        out = differentiable(lambda: call(asked))
        (gradient,) = torch.autograd.grad(out.square().sum(), asked)
    torch.testing.assert_close(out.detach(), plain, rtol=1e-5, atol=1e-5)
    direction = gradient / gradient.norm()
    ends = [call(given + step * direction).double().square().sum() for step in (1e-2, -1e-2)]
    assert float(ends[0] - ends[1]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.01)


@pytest.mark.parametrize("recompute", [False, True])
def test_control_added_in_place(shapes, recompute):
    """ControlNets are added with `+=` to what the next block has already read."""
    differentiable = loaded(shapes, recompute)
    model, seen = differentiable.patcher.model, []

    def note(h, options):
        seen.append(h.shape)
        return h

    plain = predict(differentiable, X, CONTEXT, {"patches": {"input_block_patch": [note]}})

    def call(context):
        control = {"output": [0.5 * noise_of(shape, 7).to(DEVICE) for shape in seen]}
        control["middle"] = [0.5 * noise_of(seen[-1], 8).to(DEVICE)]
        return model.apply_model(X, SIGMA, c_crossattn=context, control=control, transformer_options={})

    assert not torch.allclose(call(CONTEXT), plain, atol=0.1)
    check_by_differences(differentiable, call, CONTEXT)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("which", ["x", "context"])
def test_blocks_that_change_what_they_are_given(recompute, which):
    """Flux's add to it in place after their norms have read it."""
    differentiable = Differentiable(tiny_flux(), recompute)
    comfy.model_management.load_models_gpu([differentiable.patcher])
    given = {"x": noise_of((1, 16, 8, 8)).to(DEVICE), "context": noise_of((1, 12, 48), 1).to(DEVICE)}
    pooled, guidance, sigma = (each.to(DEVICE) for each in (noise_of((1, 32), 2), *torch.tensor([[3.5], [0.6]])))

    def call(value):
        x, context = ({**given, which: value}[name] for name in ("x", "context"))
        return differentiable.patcher.model.apply_model(
            x, sigma, c_crossattn=context, y=pooled, guidance=guidance, transformer_options={}
        )

    check_by_differences(differentiable, call, given[which])


def test_attention_without_a_way_back_is_replaced_and_patches_of_it_are_kept(shapes):
    expected = gradients_of(loaded(shapes))

    def quantised(q, k, v, heads, *args, **kwargs):
        return comfy.ldm.modules.attention.attention_pytorch(q.detach(), k.detach(), v.detach(), heads, **kwargs)

    model = shapes[0].clone()
    if hasattr(model, "set_model_optimized_attention"):
        model.set_model_optimized_attention(quantised)
        options = Differentiable.options(model.model_options)["transformer_options"]
        for a, b in zip(gradients_of(loaded(shapes), options), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    called = []

    def patch(func, *args, **kwargs):
        called.append(func.__name__)
        return 2 * func(*args, **kwargs)

    options = Differentiable.options({"transformer_options": {"optimized_attention_override": patch}})
    denoised, *_ = gradients_of(loaded(shapes), options["transformer_options"])
    assert set(called) == {"attention_pytorch"} and not torch.allclose(denoised, expected[0])


@pytest.mark.parametrize("which", ["vae"])
def test_through_the_vae(shapes, which):
    vae = shapes[2]
    differentiable = Differentiable(vae.patcher)
    comfy.model_management.load_models_gpu([differentiable.patcher])
    latent = noise_of((1, 4, 8, 8)).to(vae.device)
    plain = vae.first_stage_model.decode(latent)
    with gradients():
        latent = latent.clone().requires_grad_()
        pixels = differentiable(lambda: differentiable.patcher.model.decode(latent))
        (gradient,) = torch.autograd.grad(pixels.square().sum(), latent)
    torch.testing.assert_close(pixels.detach(), plain, rtol=1e-4, atol=1e-4)
    assert gradient.abs().sum() > 0
