"""What bad input gets: a ValueError that names the node, before the model is called and with the model as it was."""

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from safetensors.torch import save_file
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, watched
from steer.lab.comfy.server import HostError
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.sdedit import SteerSDEditSigmas

LATENT = torch.ones(1, 4, 16, 16)
HOLE = torch.zeros(1, 1, 16, 16)
HOLE[..., 4:9, 4:9] = 1
SIGMAS = torch.tensor([14.6, 4.0, 1.0, 0.0])
RISING = SIGMAS.flip(0) + 0.1
SAMPLERS = {
    "ddim": lambda: SteerDDIMSampler.execute(0.0)[0],
    "repaint": lambda: SteerRePaintSampler.execute(2, 1, 1.0)[0],
    "langevin": lambda: SteerLangevinSampler.execute(2, 0.5)[0],
    "blended": lambda: SteerBlendedSampler.execute(comfy.samplers.sampler_object("euler"), 0)[0],
}
MASKING = ["repaint", "langevin", "blended"]


@pytest.fixture
def guiders(shapes):
    """Both guiders on a model that counts its calls, and the counts."""
    model, rows = counted(shapes[0])
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    steer = SteerCFGGuider.execute(model, *conds, 3.0, 0.0, 1.0, 1.0)[0]
    return {"steer": steer, "host": host_guider(model, *conds, 3.0)}, rows


def refused(guiders, sampler, message, guider="steer", sigmas=SIGMAS, noise=None, latent=LATENT, mask=HOLE):
    every, rows = guiders
    noise = noise_of(latent.shape) if noise is None else noise
    with pytest.raises(ValueError, match=f"Steer.*: .*{message}"):
        run(every[guider], SAMPLERS[sampler](), sigmas, noise, latent, mask)
    assert not rows


@pytest.mark.parametrize("guider", ["steer", "host"])
@pytest.mark.parametrize("sampler", SAMPLERS)
class TestRun:
    def test_wrong_channels(self, guiders, guider, sampler):
        refused(guiders, sampler, "16 channels.*works on 4", guider, latent=torch.ones(1, 16, 16, 16))

    def test_nan_latent(self, guiders, guider, sampler):
        refused(guiders, sampler, "NaN", guider, latent=LATENT * float("nan"))

    def test_nan_noise(self, guiders, guider, sampler):
        refused(guiders, sampler, "noise holds NaN", guider, noise=LATENT * float("inf"))

    def test_one_sigma(self, guiders, guider, sampler):
        refused(guiders, sampler, "at least two", guider, sigmas=SIGMAS[:1])

    def test_rising_sigmas(self, guiders, guider, sampler):
        refused(guiders, sampler, "descending", guider, sigmas=RISING)

    def test_sigma_zero_too_early(self, guiders, guider, sampler):
        refused(guiders, sampler, "only the last", guider, sigmas=torch.tensor([2.0, 0.0, 0.0]))


@pytest.mark.parametrize("guider", ["steer", "host"])
@pytest.mark.parametrize("sampler", MASKING)
class TestMask:
    def test_missing(self, guiders, guider, sampler):
        if sampler != "repaint":  # which samples all anew
            refused(guiders, sampler, "no noise mask.*Set Latent Noise Mask", guider, mask=None)

    def test_out_of_range(self, guiders, guider, sampler):
        refused(guiders, sampler, "from 0", guider, mask=HOLE * 255)

    def test_differential_diffusion(self, guiders, guider, sampler):
        every, _ = guiders
        every[guider].model_options["denoise_mask_function"] = lambda sigma, mask, extra_options: mask
        refused(guiders, sampler, "Differential Diffusion", guider)


def test_mask_of_another_aspect_or_batch(guiders):
    """Only Steer's guiders see the mask as it was given: the host's stretches it before any sampler runs."""
    refused(guiders, "repaint", "128x64.*16x16", mask=torch.ones(1, 64, 128))
    refused(
        guiders,
        "repaint",
        "2 masks for a batch of 3",
        latent=LATENT.repeat(3, 1, 1, 1),
        mask=torch.ones(2, 128, 128),
    )


@pytest.mark.parametrize("size", [(128, 128), (135, 128), (16, 16), (1, 16, 16)])
def test_masks_that_fit(guiders, size):
    every, _ = guiders
    run(every["steer"], SAMPLERS["repaint"](), SIGMAS, noise_of(LATENT.shape), LATENT, torch.ones(size))


def test_no_sigmas_at_all(guiders):
    """Only Steer's guider can say so: the host's returns the latent before any sampler runs."""
    refused(guiders, "ddim", "0 given", sigmas=SIGMAS[:0])


def image_to_image(model):
    """A clone sampled by a law that is no mixing of picture and noise."""
    kinds = (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.IMG_TO_IMG_FLOW)
    model = model.clone()
    model.add_object_patch("model_sampling", type("ModelSampling", kinds, {})(model.model.model_config))
    return model


@pytest.mark.skipif(not hasattr(comfy.model_sampling, "IMG_TO_IMG_FLOW"), reason="this host has no such model")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_unknown_noise_law(shapes, sampler):
    model, rows = counted(image_to_image(shapes[0]))
    guider = host_guider(model, encode(shapes[1], ""), encode(shapes[1], ""), 1.0)
    refused(({"steer": guider}, rows), sampler, "IMG_TO_IMG_FLOW.*does not know", sigmas=SIGMAS / 20)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda m, c: SteerDDIMSampler.execute(1.5), "eta is 1.5.*from 0 to 1"),
        (lambda m, c: SteerDDIMSampler.execute(float("nan")), "eta is nan"),
        (lambda m, c: SteerRePaintSampler.execute(0, 10, 1.0), "resamples is 0.*from 1 to 100"),
        (lambda m, c: SteerRePaintSampler.execute(10, 0, 1.0), "jump_length is 0"),
        (lambda m, c: SteerRePaintSampler.execute(10, 10, -0.1), "eta is -0.1"),
        (lambda m, c: SteerLangevinSampler.execute(0, 0.5), "inner is 0.*from 1 to 100"),
        (lambda m, c: SteerLangevinSampler.execute(5, 1.0), "momentum is 1.*from 0 to 0.95"),
        (lambda m, c: SteerLangevinSampler.execute(5, float("nan")), "momentum is nan"),
        (lambda m, c: SteerBlendedSampler.execute(SAMPLERS["ddim"](), -1), "dilation is -1"),
        (lambda m, c: SteerBlendedSampler.execute(SAMPLERS["repaint"](), 0), "SteerRePaintSampler.*plain sampler"),
        (lambda m, c: SteerBlendedSampler.execute(SAMPLERS["blended"](), 0), "SteerBlendedSampler.*plain sampler"),
        (lambda m, c: SteerSDEditSigmas.execute(m, "normal", -3, 0.5), "steps is -3"),
        (lambda m, c: SteerSDEditSigmas.execute(m, "normal", 20, 0.0), "strength is 0"),
        (lambda m, c: SteerSDEditSigmas.execute(m, "normal", 20, 1.5), "strength is 1.5"),
        (lambda m, c: SteerSDEditSigmas.execute(m, "simple", 50, 0.01), "at most 11 steps"),
        (lambda m, c: SteerCFGGuider.execute(m, c, c, float("nan"), 0.0, 1.0, 1.0), "cfg is nan"),
        (lambda m, c: SteerCFGGuider.execute(m, c, c, 7.5, 0.6, 0.4, 1.0), "start_percent 0.6.*end_percent 0.4"),
        (lambda m, c: SteerCFGGuider.execute(m, c, c, 7.5, 0.0, 1.0, 2.0), "negative_scale is 2.*empty"),
    ],
)  # fmt: skip
def test_settings_are_refused(shapes, make, message):
    with pytest.raises(ValueError, match=f"^Steer.*: .*{message}"):
        make(shapes[0], encode(shapes[1], ""))


class Stop(RuntimeError):
    pass


def failing(shapes, after):
    """A clone whose model fails at its call number `after`."""
    calls = []

    def look(rows):
        calls.append(rows)
        if len(calls) == after:
            raise Stop

    return watched(shapes[0], look)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("how", ["failure", "interrupt", "refusal"])
def test_the_model_is_as_before(shapes, sampler, how):
    """After a failing model, an interrupt and a refusal mid-graph the next plain sampling is bitwise the same."""
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    euler = comfy.samplers.sampler_object("euler")
    noise, calls = noise_of(LATENT.shape), []

    def plain():
        return run(host_guider(shapes[0], *conds, 3.0), euler, SIGMAS, noise)

    def interrupt(index, denoised, x, total):
        calls.append(index)
        if index == 1:
            comfy.model_management.interrupt_current_processing()

    before = plain()
    patches = {key: list(value) for key, value in shapes[0].patches.items()}
    model = failing(shapes, 2) if how == "failure" else shapes[0]
    guider = SteerCFGGuider.execute(model, *conds, 3.0, 0.0, 1.0, 1.0)[0]
    expected = {
        "failure": Stop,
        "interrupt": comfy.model_management.InterruptProcessingException,
        "refusal": ValueError,
    }
    with pytest.raises(expected[how]):
        latent = LATENT * float("nan") if how == "refusal" else LATENT
        run(
            guider, SAMPLERS[sampler](), SIGMAS, noise, latent, HOLE, callback=interrupt if how == "interrupt" else None
        )
    if how == "interrupt":
        assert calls == [0, 1]
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(plain(), before)
    assert shapes[0].patches == patches and not guider.model_options.get("multigpu_thread_pool")


def graph(**changes):
    """An inpainting prompt in API form; `changes` replace inputs, given as node__input."""
    prompt = {
        "model": ("CheckpointLoaderSimple", {"ckpt_name": "shapes.safetensors"}),
        "positive": ("CLIPTextEncode", {"clip": ["model", 1], "text": "a red circle on a blue background"}),
        "negative": ("CLIPTextEncode", {"clip": ["model", 1], "text": ""}),
        "guider": ("SteerCFGGuider", {"model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
                                      "cfg": 5.0, "start_percent": 0.0, "end_percent": 1.0, "negative_scale": 1.0}),
        "sampler": ("SteerRePaintSampler", {"resamples": 2, "jump_length": 2, "eta": 1.0}),
        "sigmas": ("SteerSDEditSigmas", {"model": ["model", 0], "scheduler": "normal", "steps": 4, "strength": 1.0}),
        "empty_sigmas": ("BasicScheduler", {"model": ["model", 0], "scheduler": "normal", "steps": 4, "denoise": 0.0}),
        "split": ("SplitSigmas", {"sigmas": ["sigmas", 0], "step": 0}),
        "flip": ("FlipSigmas", {"sigmas": ["sigmas", 0]}),
        "int": ("PrimitiveInt", {"value": 0}),
        "float": ("PrimitiveFloat", {"value": 1.0}),
        "latent": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "file": ("LoadLatent", {"latent": "bad.latent"}),
        "mask": ("SolidMask", {"value": 1.0, "width": 128, "height": 128}),
        "masked": ("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["mask", 0]}),
        "noise": ("RandomNoise", {"noise_seed": 0}),
        "sample": ("SamplerCustomAdvanced", {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0],
                                             "sigmas": ["sigmas", 0], "latent_image": ["masked", 0]}),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["model", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "bad_input"}),
    }  # fmt: skip
    for place, value in changes.items():
        node, name = place.split("__")
        prompt[node][1][name] = value
    needed, todo = {}, ["save"]
    while todo:
        node = todo.pop()
        kind, inputs = prompt[node]
        needed[node] = {"class_type": kind, "inputs": inputs}
        todo += [value[0] for value in inputs.values() if isinstance(value, list)]
    return needed


WITH_MASK_OF_FILE = {"masked__samples": ["file", 0]}


@pytest.mark.parametrize(
    "changes, bad, node, message",
    [
        (WITH_MASK_OF_FILE, torch.ones(1, 16, 16, 16), "sample", "16 channels"),
        (WITH_MASK_OF_FILE, torch.full((1, 4, 16, 16), float("nan")), "sample", "NaN"),
        ({"mask__width": 64}, None, "sample", "another aspect"),
        ({"sample__sigmas": ["empty_sigmas", 0]}, None, "sample", "0 given"),
        ({"sample__sigmas": ["split", 0]}, None, "sample", "1 given"),
        ({"sample__sigmas": ["flip", 0]}, None, "sample", "rise from .*descending"),
        ({"sampler__resamples": ["int", 0]}, None, "sampler", "resamples is 0"),
        ({"sigmas__steps": ["int", 0], "int__value": -5}, None, "sigmas", "steps is -5"),
        ({"sigmas__strength": ["float", 0], "float__value": 0.0}, None, "sigmas", "strength is 0"),
        ({"guider__start_percent": ["float", 0]}, None, "guider", "start_percent 1 is not before end_percent 1"),
    ],
)  # fmt: skip
def test_the_error_reaches_the_client(server, changes, bad, node, message):
    if bad is not None:
        save_file(
            {"latent_tensor": bad, "latent_format_version_0": torch.tensor([])}, server.input_folder / "bad.latent"
        )
    with pytest.raises(HostError, match=message) as caught:
        server.run(graph(**changes))
    assert caught.value.node_id == node and caught.value.exception_type == "ValueError"
    assert "Steer" in caught.value.exception_message


def test_an_empty_mask_is_no_error_and_is_said_in_the_log_and_on_the_node(server):
    """One in which nothing was found does not end a queue, whatever its aspect."""
    prompt, text = graph(mask__value=0.0, mask__height=64), "SteerRePaintSampler: the noise mask is empty"
    with server.client() as client:
        received, receive = [], client._channel.recv
        client._channel.recv = lambda: received.append(receive()) or received[-1]
        number = client.queue(prompt)
        client.wait(number)
    assert server.images(server.outputs(number)) and text in server.log()
    assert any(isinstance(part, bytes) and text.encode() in part for part in received)


@pytest.mark.parametrize("changes, node", [({"sampler__resamples": 0}, "sampler"), ({"sigmas__steps": -1}, "sigmas")])
def test_what_the_schema_forbids_is_refused_at_once(server, changes, node):
    with pytest.raises(HostError) as caught:
        server.run(graph(**changes))
    assert list(caught.value.node_errors) == [node]


def test_the_server_is_ready_afterwards(server):
    assert server.images(server.run(graph()))
