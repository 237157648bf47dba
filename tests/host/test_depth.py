"""Depth Loss on the host: by a planted network whose depth is known, and by the host's own with random weights."""

import comfy.model_patcher
import comfy.ops
import pytest
import torch
from steer.lab.comfy.random_models import draw_weights, random_kl
from steer.lab.comfy.runs import counted, host_guider, noise_of, run
from steer.nodes.depth import SteerDepthLoss
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host import depth as host_depth
from steer.nodes.runs.loss_terms import gradients_of
from steer.samplers.depth import depth_distance
from steer.tests import checks, oracles
from steer.tests.host_models import EPS, FLOW, closed_form, mean_conditioning, planted_depth, relative
from steer.tests.oracles import EULER, started

RESOLUTION = 140
MODEL = planted_depth()


def picture(batch=1, seed=1):
    """A slope, and things on it."""
    rows = torch.linspace(0.1, 0.9, 64)[None, :, None, None].expand(batch, 64, 64, 3)
    return (0.7 * rows + 0.3 * torch.rand(batch, 8, 8, 3, generator=torch.Generator().manual_seed(seed))
            .repeat_interleave(8, 1).repeat_interleave(8, 2)).contiguous()  # fmt: skip


def loss_of(vae, image, model=MODEL, resolution=RESOLUTION):
    return SteerDepthLoss.execute(model, vae, image, resolution)[0]


def guided(guider, loss, scale=1000.0, mask=None, iterations=1, through_model=False):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model, mask, 3.0, iterations)[0]


def known_guider(shapes, law):
    return host_guider(closed_form(shapes[0], law), mean_conditioning(0.1), mean_conditioning(0.1), 1.0)


def unclamped(vae, latent):
    return ((vae.first_stage_model.decode(latent) + 1.0) / 2.0).detach()


def gray_distance(vae, latent, image, model=MODEL):
    """By the same network, at the decoded pictures' own size."""
    maps = [
        host_depth.disparity(model, lambda call: call(), pixels.movedim(-1, 1), (140, 140))
        for pixels in (vae.decode(latent), image)
    ]
    (ours, valid), (wanted, known) = maps
    return depth_distance(ours, wanted.expand_as(ours), valid & known)


@pytest.mark.parametrize("law, iterations", [(EPS, 1), (EPS, 4), (FLOW, 1), (FLOW, 4)])
def test_one_step_comes_closer(shapes, law, iterations):
    guider, vae, x, image = known_guider(shapes, law), shapes[2], noise_of((2, 4, 8, 8)), picture()
    plain, steered = (
        run(each, EULER, torch.tensor([0.7, 0.0]), x)
        for each in (guider, guided(guider, loss_of(vae, image), 100.0, iterations=iterations))
    )
    assert (gray_distance(vae, steered, image) < gray_distance(vae, plain, image)).all()


def test_the_gradient_is_the_losses(shapes, monkeypatch):
    """A linear network's, against finite differences of the whole way."""
    loss, latent = loss_of(shapes[2], picture()), 0.3 * noise_of((1, 4, 8, 8)).to(shapes[2].device)
    (slope,) = gradients_of("test", [started(shapes, loss, latent)], latent, 1.0)
    step = 3e-3 * slope / slope.norm()
    ends = [float(started(shapes, loss, latent)(latent + sign * step, 1.0)) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 6e-3 == pytest.approx(float(slope.norm()), rel=0.1)


def test_its_own_picture_is_0_and_the_inverted_one_2(shapes):
    vae, latent = shapes[2], 0.3 * noise_of((1, 4, 8, 8))
    own = unclamped(vae, latent).clamp(0, 1).movedim(1, -1)
    model = shapes[0].model.process_latent_in(latent)
    same, inverted, half = (
        float(started(shapes, loss_of(vae, image), model)(model, 1.0)) for image in (own, 1.0 - own, 0.3 + 0.5 * own)
    )
    assert abs(same) < 1e-4 and inverted == pytest.approx(2.0, abs=1e-3) and abs(half) < 1e-3


def test_the_sky_and_what_is_outside_the_mask_do_not_count(shapes):
    latent, loss, pictures = noise_of((1, 4, 8, 8)), loss_of(shapes[2], picture()), picture(seed=2).movedim(-1, 1)
    blue, other = pictures.clone(), pictures.clone()
    blue[..., :20], other[..., :20] = torch.tensor([0.0, 0.0, 1.0])[:, None, None], 0.9
    mask = torch.ones(1, 1, 64, 64)
    mask[..., :24] = 0.0
    plain = started(shapes, loss, latent)
    masked = started(shapes, loss, latent, mask)
    assert float(plain.judge(other)) != pytest.approx(float(plain.judge(pictures)), rel=0.02)
    assert float(masked.judge(other)) == pytest.approx(float(masked.judge(pictures)), rel=0.02)
    darker = blue.clone()
    darker[:, 2, :, :12] = 0.8  # still sky, of another "depth"
    assert float(plain.judge(blue)) == pytest.approx(float(plain.judge(darker)), rel=1e-4)


def test_a_batch_with_images_of_its_own_is_its_pictures_alone(shapes):
    guider, vae, sigmas = known_guider(shapes, EPS), shapes[2], torch.tensor([0.7, 0.0])
    x, images = noise_of((2, 4, 8, 8)), torch.cat([picture(), picture(seed=2).flip(1)])

    def out(images, x):
        return run(guided(guider, loss_of(vae, images), 10.0), EULER, sigmas, x)

    both = out(images, x)
    assert relative(both, torch.cat([out(images[i : i + 1], x[i : i + 1]) for i in (0, 1)])) < 1e-3
    assert relative(out(images[:1], x)[1:], both[1:]) > 1e-3


def test_scale_0_is_bitwise_plain(shapes):
    guider, sigmas, x = known_guider(shapes, EPS), torch.tensor([0.7, 0.0]), noise_of((1, 4, 8, 8))
    loss = loss_of(shapes[2], picture())
    assert torch.equal(run(guided(guider, loss, 0.0), EULER, sigmas, x), run(guider, EULER, sigmas, x))


def refused(shapes, message, latent=(1, 4, 8, 8), **inputs):
    """Before the first model call."""
    model, rows = counted(closed_form(shapes[0], EPS))
    guider = host_guider(model, mean_conditioning(0), mean_conditioning(0), 1.0)
    usual = {"depth_model": MODEL, "vae": shapes[2], "image": picture(), "resolution": RESOLUTION}
    with pytest.raises(ValueError, match=message):
        loss = SteerDepthLoss.execute(**usual | inputs)[0]
        run(guided(guider, loss), EULER, torch.tensor([1.0, 0.0]), noise_of(latent))
    assert not rows


def test_bad_input(shapes):
    refused(shapes, "SteerDepthLoss: depth_model is of the type ModelPatcher; it needs a depth model, as Load Depth "
            "Anything 3 and Load MoGe Model .* give it", depth_model=shapes[0])  # fmt: skip
    refused(shapes, "SteerDepthLoss: depth_model is None", depth_model=None)
    refused(shapes, "SteerDepthLoss: resolution is 100", resolution=100)
    refused(shapes, "SteerDepthLoss: image has shape .*split an alpha channel off", image=torch.rand(1, 8, 8, 4))
    refused(shapes, "SteerDepthLoss: image has shape", image=torch.rand(1, 8, 8, 1))
    refused(shapes, "SteerGradientGuider: image is 96x64 .* of another aspect", image=torch.rand(1, 64, 96, 3))
    refused(shapes, "SteerGradientGuider: image has no depth to the model", image=torch.full((1, 64, 64, 3), 0.5))
    sky = torch.tensor([0.0, 0.0, 1.0]).expand(1, 64, 64, 3)
    refused(shapes, "SteerGradientGuider: image has no depth to the model: it is all sky", image=sky)
    refused(shapes, "SteerGradientGuider: the loss has 3 of image for a batch of 2", (2, 4, 8, 8), image=picture(3))
    vae = random_kl()
    vae.latent_channels = 16
    refused(shapes, "SteerGradientGuider: vae has 16 latent channels and the model works on 4", vae=vae)


def depth_anything(monkeypatch):
    """The host's Depth Anything 3 of the large variants' form (with a sky), small and of random weights."""
    model = pytest.importorskip("comfy.ldm.depth_anything_3.model")
    tiny = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "use_swiglu_ffn": False}
    monkeypatch.setitem(model._BACKBONE_PRESETS, "vits", tiny)
    network = model.DepthAnything3Net(
        "vits", out_layers=(0, 1, 2, 3), head_dim_in=32, head_features=16, head_out_channels=(8, 8, 16, 16),
        dtype=torch.float32, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    draw_weights(network, 0)
    management = comfy.model_management
    holder = torch.nn.ModuleDict({"diffusion_model": network.eval()})
    return comfy.model_patcher.ModelPatcher(holder, management.get_torch_device(), management.unet_offload_device())


def moge(monkeypatch):
    """The host's MoGe, small and of random weights."""
    model = pytest.importorskip("comfy.ldm.moge.model")
    backbone = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 4, "layer_norm_eps": 1e-6,
                "use_swiglu_ffn": False}  # fmt: skip
    network = model.MoGeModelV1(backbone, [16, 16, 16], dtype=torch.float32)
    draw_weights(network, 0)
    return model.MoGeModel(network.state_dict())


@pytest.mark.parametrize("build", [depth_anything, moge])
def test_the_hosts_own_networks_are_differentiated(shapes, monkeypatch, build):
    """Depth Anything 3's depth as the host's node reads it, own picture 0, and the gradient by finite differences."""
    model, vae, latent = build(monkeypatch), shapes[2], 0.3 * noise_of((1, 4, 8, 8))
    own = unclamped(vae, latent).clamp(0, 1).movedim(1, -1)
    known = shapes[0].model.process_latent_in(latent).to(vae.device)
    same = float(started(shapes, loss_of(vae, own, model), known)(known, 1.0))
    loss = loss_of(vae, picture(), model)
    (slope,) = gradients_of("test", [started(shapes, loss, known)], known, 1.0)
    value = float(started(shapes, loss, known)(known, 1.0))
    assert abs(same) < 1e-2 * value
    step = 3e-3 * slope / slope.norm()
    ends = [float(started(shapes, loss, known)(known + sign * step, 1.0)) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 6e-3 == pytest.approx(float(slope.norm()), rel=0.1)


def test_depth_anythings_depth_is_what_the_host_reads(monkeypatch):
    model = depth_anything(monkeypatch)
    nodes = pytest.importorskip("comfy_extras.nodes_depth_anything_3")
    pixels = torch.rand(1, 140, 140, 3, generator=torch.Generator().manual_seed(1))
    depth, _, sky = nodes._run_da3(model, pixels, 140)
    ours, valid = host_depth.disparity(model, lambda call: call(), pixels.movedim(-1, 1), (140, 140))
    torch.testing.assert_close(1.0 / ours.cpu(), depth, rtol=1e-3, atol=1e-4)
    assert torch.equal(valid.cpu(), sky < 0.3)


def on_family(family):
    guider, vae, sigmas = oracles.guider_of(family), family.vae(), oracles.from_level(family, 1)
    given = EULER, sigmas, oracles.noise_for(family), family.picture()
    image = picture()
    loss = loss_of(vae, image)

    def far(latent):
        pixels = vae.decode(latent).flatten(0, -4)
        maps = [host_depth.disparity(MODEL, lambda call: call(), each.movedim(-1, 1), (140, 140))
                for each in (pixels, image)]  # fmt: skip
        return float(depth_distance(maps[0][0], maps[1][0].expand_as(maps[0][0]), maps[0][1]).mean())

    plain = run(guider, *given)
    assert torch.equal(run(guided(guider, loss, 0.0), *given), plain)
    assert far(run(guided(guider, loss, iterations=4), *given)) < far(plain)


ORACLE = {"SteerDepthLoss": ("one solved step brings a planted network's depth closer; scale 0 is plain", on_family)}
CHECK = {"SteerDepthLoss": (checks.loss, (*checks.RUN, "guider"))}
USUAL = {"SteerDepthLoss": {"resolution": (140,)}}
