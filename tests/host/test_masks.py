"""Masks over wires: each picture's own on every kind of latent, what does not belong together, and empty ones."""

import comfy.samplers
import comfy.utils
import nodes
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from steer.attention.paint_with_words import Region
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.attention_maps import SteerCaptureAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host import progress
from steer.nodes.host.masks import fitted_mask
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion, SteerRegionsFromSegmentation
from steer.nodes.picture_inputs import mask_like
from steer.nodes.poisson_blend import SteerPoissonBlend
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.runs.paint_with_words import check_region
from steer.nodes.stitch import SteerStitch
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.cases import checkered
from steer.tests.families import FAMILIES
from steer.tests.host_models import EPS, FLOW, closed_form, for_shape, hole, mean_conditioning, relative

QUICK = settings(
    deadline=None, max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIDE = st.integers(64, 1400)
SIGMAS = torch.tensor([8.0, 3.0, 1.0, 0.0])
LATENT = (1, 4, 18, 25)  # of a picture of 200x151
NOTHING = torch.zeros(1, 64, 64)  # what Load Image gives for a picture without alpha
EULER = comfy.samplers.sampler_object("euler")


class Pull:
    """A loss: the squared distance of the estimate to 0.8, which says how often it was asked."""

    noisy, patchers = False, ()

    def __init__(self):
        self.asked = 0

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        def loss(latent, sigma):
            self.asked += 1
            return 0.5 * (latent - 0.8).square().flatten(1).sum(1)

        return loss


def blended(dilation=0):
    return SteerBlendedSampler.execute(EULER, dilation)[0]


def repaint():
    return SteerRePaintSampler.execute(2, 1, 1.0)[0]


def langevin():
    return SteerLangevinSampler.execute(2, 0.5)[0]


def pulled(guider, mask=None, loss=None):
    return SteerGradientGuider.execute(guider, loss or Pull(), 1.0, 0.0, 1.0, False, mask, 1000.0)[0]


MASKING = {"blended": blended, "blended, dilated": lambda: blended(1), "repaint": repaint, "langevin": langevin}
GUIDERS = {
    "cfg": lambda model, *conds: SteerCFGGuider.execute(model, *conds, 2.0, 0.0, 1.0, 1.0)[0],
    "gradient": lambda *given: pulled(host_guider(*given, 2.0)),
    "gradient of cfg": lambda *given: pulled(GUIDERS["cfg"](*given)),
}
CONDS = mean_conditioning(3), mean_conditioning(0)


@pytest.fixture
def clips(shapes, monkeypatch):
    """A model of clips whose answer is known."""
    return for_shape(monkeypatch, closed_form(shapes[0], EPS), (1, 4, 1, 16, 16))


class TestClips:
    """Models whose pictures are clips of one frame, and real clips."""

    @pytest.mark.parametrize("guider, sampler", checkered(list(GUIDERS), list(MASKING)))
    def test_each_picture_has_the_mask_it_has_alone(self, clips, sampler, guider):
        latent, noise, mask = noise_of((3, 4, 1, 16, 16), 1), noise_of((3, 4, 1, 16, 16)), hole(3, 128, 128)
        mask[:, :, 64:96, 32:64] = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
        guider = GUIDERS[guider](clips, *CONDS)
        together = run(guider, MASKING[sampler](), SIGMAS, noise, latent, mask)
        for i in (slice(0, 1), slice(1, 2), slice(2, 3)):
            alone = run(guider, MASKING[sampler](), SIGMAS, noise[i], latent[i], mask[i])
            assert relative(together[i], alone) < 1e-5
            kept = comfy.utils.reshape_mask(mask[i], (1, 4, 16, 16))[:, :, None] == 0
            assert relative(together[i][kept], latent[i][kept]) < 1e-5

    @pytest.mark.parametrize("guider", ["cfg", "gradient"])
    @pytest.mark.parametrize("sampler", ["blended", "repaint", "langevin"])
    def test_on_wans_structure(self, sampler, guider):
        wan = FAMILIES[-1]
        latent, noise, mask = noise_of((2, 16, 1, 8, 8), 1), noise_of((2, 16, 1, 8, 8)), torch.zeros(2, 64, 64)
        mask[0, :32], mask[1, :, 32:] = 1, 1
        guider, sigmas = GUIDERS[guider](wan.model(), wan.prompt("a red circle"), wan.prompt("")), SIGMAS / 10
        together = run(guider, MASKING[sampler](), sigmas, noise, latent, mask)
        kept = (comfy.utils.reshape_mask(mask, (2, 16, 8, 8)) == 0)[:, :, None]
        assert relative(together[kept], latent[kept]) < 1e-5
        for i in (slice(0, 1), slice(1, 2)):
            assert relative(together[i], run(guider, MASKING[sampler](), sigmas, noise[i], latent[i], mask[i])) < 1e-5

    @QUICK
    @given(batch=st.integers(1, 4), frames=st.integers(1, 3), sides=st.tuples(st.integers(2, 12), st.integers(2, 12)))
    def test_the_host_gets_them_so(self, batch, frames, sides):
        """What its resizing makes of a mask for each frame of each clip is what it makes of each alone."""
        height, width = sides
        masks, shape = torch.rand(batch * frames, 8 * height, 8 * width), (batch, 4, frames, height, width)
        given = comfy.utils.reshape_mask(fitted_mask(masks, torch.zeros(shape)), shape)
        alone = comfy.utils.reshape_mask(masks, (batch * frames, 4, height, width))
        expected = alone.unflatten(0, (batch, frames)).movedim(1, 2)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("count", [3, 5, 4])
    @pytest.mark.parametrize("guider", GUIDERS)
    def test_other_numbers_are_refused(self, clips, guider, count):
        model, rows = counted(clips)
        noise = noise_of((2, 4, 1, 16, 16))
        with pytest.raises(ValueError, match=f"Steer.*: noise mask: {count} masks for a batch of 2 latents"):
            run(GUIDERS[guider](model, *CONDS), repaint(), SIGMAS, noise, noise, torch.ones(count, 128, 128))
        assert not rows

    @pytest.mark.parametrize("sampler", MASKING)
    def test_the_hosts_guiders_mix_them_which_is_said(self, clips, sampler):
        model, rows = counted(clips)
        noise, guider = noise_of((2, 4, 1, 16, 16)), host_guider(model, *CONDS, 2.0)
        with pytest.raises(ValueError, match="Steer.*: the host's guiders take the masks of 2 clips.*SteerCFGGuider"):
            run(guider, MASKING[sampler](), SIGMAS, noise, noise, hole(2, 128, 128))
        assert not rows
        # one picture, and masks that came as the host takes them for clips
        guider, mask = host_guider(clips, *CONDS, 2.0), hole(2)[:, :, None]
        for pictures in (slice(0, 2), slice(0, 1)):
            latent = noise_of((2, 4, 1, 16, 16), 1)[pictures]
            out = run(guider, MASKING[sampler](), SIGMAS, noise[pictures], latent, mask[pictures])
            kept = (mask[pictures] == 0).expand_as(out)
            assert relative(out[kept], latent[kept]) < 1e-5

    @pytest.mark.parametrize("guider, sampler", checkered([*GUIDERS, "host"], list(MASKING)))
    def test_each_frame_of_a_clip_has_its_own(self, clips, sampler, guider):
        guider = {**GUIDERS, "host": lambda *given: host_guider(*given, 2.0)}[guider](clips, *CONDS)
        latent, mask = noise_of((1, 4, 3, 16, 16), 1), hole(3, 128, 128)
        out = run(guider, MASKING[sampler](), SIGMAS, noise_of(latent.shape), latent, mask)
        small = comfy.utils.reshape_mask(mask, (3, 4, 16, 16)).movedim(0, 1)[None]
        assert relative(out[small == 0], latent[small == 0]) < 1e-5
        assert (out - latent)[small > 0].abs().min() > 1e-4

    @pytest.mark.parametrize("guider", ["cfg", "gradient"])
    def test_the_frames_of_two_clips_and_those_of_the_picture(self, clips, guider):
        guider, latent = GUIDERS[guider](clips, *CONDS), noise_of((2, 4, 3, 16, 16), 1)
        noise = noise_of(latent.shape)
        for masks in (hole(6), torch.cat([hole(3)] * 6)):  # one for each latent frame, and for each of nine frames
            mask = (torch.rand(len(masks), 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3) > 0.5).float()
            out = run(guider, repaint(), SIGMAS, noise, latent, mask)
            each = mask[:, 0].unflatten(0, (2, -1))
            if each.shape[1] == 9:
                each = torch.stack([each[:, 0], each[:, 1:5].amax(1), each[:, 5:].amax(1)], 1)
            kept = (each == 0)[:, None].expand_as(out)
            assert relative(out[kept], latent[kept]) < 1e-5
            assert (out - latent)[~kept].abs().min() > 1e-5

    def test_a_gradients_mask_and_a_diffedit_within_one(self, clips, shapes):
        latent = noise_of((2, 4, 1, 16, 16))
        mask = torch.zeros(2, 1, 16, 16)
        mask[0, :, :8], mask[1, :, 8:] = 1, 1
        plain = run(host_guider(clips, *CONDS, 2.0), EULER, SIGMAS, latent)
        moved = run(pulled(host_guider(clips, *CONDS, 2.0), mask), EULER, SIGMAS, latent) != plain
        assert torch.equal(moved, (mask > 0)[:, :, None].expand_as(moved))
        given = {"samples": latent, "noise_mask": mask}
        found = SteerDiffEditMask.execute(clips, *CONDS, given, 0.5, 2, 0.1, 0)[0]
        inside = mask[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
        assert found.any() and not (found * (1 - inside)).any()


class TestOfAnotherPicture:
    @QUICK
    @given(
        height=st.integers(64, 1400),
        width=st.integers(64, 1400),
        other=st.integers(5, 20),
        cell=st.sampled_from([8, 16]),
    )
    def test_a_pictures_own_mask_is_taken_and_anothers_not(self, height, width, other, cell):
        rows, columns = height // cell, width // cell
        own = torch.zeros(1, height, width)
        own[0, height // 2, width // 2] = 1
        latent = torch.zeros(1, 4, rows, columns)
        fitted_mask(own, latent)
        check_region(Region(own, "cat"), latent)
        assert mask_like(own, height, width).shape == own.shape
        cropped = mask_like(own, rows * cell, columns * cell)
        top, left = height % cell // 2, width % cell // 2  # what the host cuts off of the picture
        assert torch.equal(cropped, own[:, top : top + rows * cell, left : left + columns * cell])
        assume(abs(other / 10 - 1) > 0.15 + 4 / min(rows, columns))  # the shorter side in cells
        another = torch.ones(1, height, max(1, width * other // 10))
        for refused in (
            lambda: fitted_mask(another, latent),
            lambda: check_region(Region(another, "cat"), latent),
            lambda: mask_like(another, height, width),
            lambda: mask_like(another, rows * cell, columns * cell),
        ):
            with pytest.raises(ValueError, match="of another aspect"):
                refused()

    @pytest.mark.parametrize("sampler", ["plain", *MASKING])
    def test_in_a_run(self, shapes, sampler):
        """A picture of 200x151, of which the host's VAE takes 200x144."""
        guider, latent = GUIDERS["cfg"](shapes[0], encode(shapes[1], ""), encode(shapes[1], "")), noise_of(LATENT)
        sampler, own = {"plain": lambda: EULER, **MASKING}[sampler](), torch.zeros(1, 151, 200)
        own[:, 40:90, 60:120] = 1
        out = run(guider, sampler, SIGMAS, noise_of(LATENT, 1), latent, own)
        assert torch.isfinite(out).all() and relative(out[..., 15:, :], latent[..., 15:, :]) < 1e-5
        with pytest.raises(ValueError, match="SteerCFGGuider: noise mask: the mask is 151x200 but the latent is 25x18"):
            run(guider, sampler, SIGMAS, noise_of(LATENT, 1), latent, own.transpose(1, 2))

    @settings(QUICK, max_examples=40)
    @given(batch=st.integers(1, 3), sides=st.tuples(*[st.integers(2, 96)] * 2), last=st.sampled_from([1, 3, 4]))
    def test_channels_are_no_masks(self, batch, sides, last):
        height, width = sides
        source, edited = torch.rand(2, batch, height, width, 3)
        mask = torch.ones(batch, height, width, last)
        for node in (lambda: SteerStitch.execute(source, edited, mask, 0), lambda: SteerPoissonBlend.execute(
            source, edited, mask), lambda: SteerRegion.execute(mask, "cat", 1.0),
            lambda: fitted_mask(mask, torch.zeros(batch, 4, height, width))):  # fmt: skip
            with pytest.raises(ValueError, match=r"\(batch, height, width\) is needed"):
                node()

    def test_a_square_picture_and_its_mask_with_a_channel(self):
        source, edited = torch.rand(2, 1, 96, 96, 3)
        for mask in (torch.ones(1, 96, 96, 1), torch.zeros(1, 96, 96, 1), torch.ones(96, 96, 1)):
            with pytest.raises(ValueError, match="SteerStitch: .*without a last axis of one channel"):
                SteerStitch.execute(source, edited, mask, 0)


@pytest.fixture
def told(monkeypatch):
    """What the nodes show on themselves."""
    lines = []
    monkeypatch.setattr(progress, "show_text", lines.append)
    return lines


def prompts(shapes):
    return encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")


class TestEmpty:
    """An empty mask leaves its picture as it was, without a model call where nothing is left to do, and says so."""

    @pytest.mark.parametrize("sampler, law", checkered([*MASKING, "trajectory"], [EPS, FLOW]))
    def test_samplers(self, shapes, sampler, law, told, caplog):
        model, rows = counted(shapes[0]) if law == EPS else counted(closed_form(shapes[0], law))
        conds = prompts(shapes) if law == EPS else CONDS
        guider, latent = GUIDERS["cfg"](model, *conds), {"samples": noise_of(LATENT)}
        sigmas, noise = sigmas_of(model, 4), noise_of(LATENT, 1)
        if sampler == "trajectory":
            latent, inverted, inversion = SteerDDIMInversion.execute(
                GUIDERS["cfg"](model, *conds), sigmas, latent, 0, 1e-4, check=False
            ).args[:3]
            noise = inverted.generate_noise(latent)
            made = SteerTrajectoryBlendSampler.execute(EULER, inversion)[0]
        else:
            made = MASKING[sampler]()
        rows.clear()
        out = run(guider, made, sigmas, noise, latent["samples"], NOTHING)
        assert relative(out, latent["samples"]) < 1e-6 and not rows
        (line,) = told
        assert line in caplog.text and "Sampler: the noise mask is empty" in line

    @pytest.mark.parametrize("guider, sampler", checkered(["cfg", "gradient of cfg", "host"], list(MASKING)))
    def test_of_a_batch(self, shapes, sampler, guider, told):
        guider = {**GUIDERS, "host": lambda *given: host_guider(*given, 2.0)}[guider](shapes[0], *prompts(shapes))
        latent, noise, mask = noise_of((3, 4, 16, 16), 1), noise_of((3, 4, 16, 16)), hole(3)
        mask[1] = 0
        together = run(guider, MASKING[sampler](), SIGMAS, noise, latent, mask)
        assert relative(together[1], latent[1]) < 1e-6
        (line,) = told
        assert "Sampler: noise mask 2 of 3 is empty" in line
        for i in (slice(0, 1), slice(2, 3)):
            alone = run(guider, MASKING[sampler](), SIGMAS, noise[i], latent[i], mask[i])
            assert relative(together[i], alone) < 3e-5 and relative(alone, latent[i]) > 0.1

    @settings(QUICK, max_examples=25)
    @given(
        painted=st.lists(st.booleans(), min_size=1, max_size=4), sides=st.tuples(*[st.integers(3, 20)] * 2),
        frames=st.sampled_from([None, 1, 2]), sampler=st.sampled_from([*MASKING]),
    )  # fmt: skip
    def test_any_batch(self, shapes, monkeypatch, painted, sides, frames, sampler):
        """Each picture is as it is alone, and the source where nothing is painted, which takes no model call."""
        axes = sides if frames is None else (frames, *sides)
        batch, calls = len(painted), []
        model = for_shape(monkeypatch, closed_form(shapes[0], EPS), (1, 4, *axes))
        look = model.model_options["model_function_wrapper"]
        model.set_model_unet_function_wrapper(lambda *args: calls.append(1) or look(*args))
        guider = GUIDERS["cfg"](model, *CONDS)
        latent, noise, mask = noise_of((batch, 4, *axes), 1), noise_of((batch, 4, *axes)), torch.zeros(batch, 1, *sides)
        mask[torch.tensor(painted), :, 1:, :2] = 1
        mask = mask if frames is None else mask[:, :, None]
        together = run(guider, MASKING[sampler](), SIGMAS, noise, latent, mask)
        assert bool(calls) == any(painted)
        for i, edited in enumerate(painted):
            alone = run(guider, MASKING[sampler](), SIGMAS, *(each[i : i + 1] for each in (noise, latent, mask)))
            assert relative(together[i : i + 1], alone) < 1e-5
            assert (relative(alone, latent[i : i + 1]) > 1e-3) == edited

    @settings(QUICK, max_examples=25)
    @given(
        painted=st.lists(st.booleans(), min_size=1, max_size=4), sides=st.tuples(*[st.integers(2, 80)] * 2),
        mask_sides=st.tuples(*[st.integers(2, 80)] * 2), node=st.sampled_from(["stitch", "poisson"]),
    )  # fmt: skip
    def test_any_batch_of_pastes(self, painted, sides, mask_sides, node):
        """Of masks of the picture's size, or all empty and of any."""
        source, edited = torch.rand(2, len(painted), *sides, 3)
        mask = torch.zeros(len(painted), *(sides if any(painted) else mask_sides))
        mask[torch.tensor(painted), 1:] = 1
        three = source, edited, mask
        out = (SteerStitch.execute(*three, 0) if node == "stitch" else SteerPoissonBlend.execute(*three))[0]
        for i, changed in enumerate(painted):
            assert torch.equal(out[i], source[i]) != changed

    @pytest.mark.parametrize("law", [EPS, FLOW])
    @pytest.mark.parametrize("sampler", [*MASKING, "trajectory"])
    def test_a_run_in_two_parts_is_the_source_too(self, shapes, sampler, law, told):
        """The first one's LATENT, at whatever level it stopped, is the clean source, and so what goes on from it."""
        model = closed_form(shapes[0], law)
        guider, latent, sigmas = GUIDERS["cfg"](model, *CONDS), {"samples": noise_of(LATENT)}, sigmas_of(model, 6)
        if sampler == "trajectory":
            latent, _, inversion = SteerDDIMInversion.execute(guider, sigmas, latent, 0, 1e-4, check=False).args[:3]
            sampler = SteerTrajectoryBlendSampler.execute(EULER, inversion)[0]
        else:
            sampler = MASKING[sampler]()
        half = run(guider, sampler, sigmas[:4], noise_of(LATENT, 1), latent["samples"], NOTHING)
        whole = run(guider, sampler, sigmas[3:], torch.zeros(LATENT), half, NOTHING)
        assert relative(half, latent["samples"]) < 1e-6 and relative(whole, latent["samples"]) < 1e-6

    def test_the_hosts_samplers(self, shapes, told):
        """They run, and change nothing; CFG Guider says why."""
        for sampler in (EULER, SteerDDIMSampler.execute(0.0)[0]):
            guider, latent = GUIDERS["cfg"](shapes[0], *prompts(shapes)), noise_of(LATENT)
            out = run(guider, sampler, SIGMAS, noise_of(LATENT, 1), latent, NOTHING)
            assert relative(out, latent) < 1e-5
            assert told.pop().startswith("SteerCFGGuider: the noise mask is empty") and not told

    def test_where_attention_is_recorded_the_model_is_called(self, shapes):
        latent = {"samples": noise_of(LATENT), "noise_mask": NOTHING}
        guider, noise = host_guider(shapes[0], *prompts(shapes), 2.0), Noise(noise_of(LATENT, 1))
        for sampler in (blended(), repaint(), langevin()):
            out, attention = SteerCaptureAttention.execute(noise, guider, sampler, SIGMAS, latent).args
            assert relative(out["samples"], latent["samples"]) < 1e-6 and attention.maps

    def test_both_halves_of_a_prompt_to_prompt(self, shapes, told):
        *conds, edit = SteerPromptEdit.execute(shapes[1], "a red circle", "a green circle", "auto", "").args
        guider = SteerPromptToPromptGuider.execute(shapes[0], *conds, prompts(shapes)[1], 2.0, edit, 0.8, 0.4)[0]
        latent, noise, mask = noise_of((2, 4, 16, 16), 1), noise_of((2, 4, 16, 16)), hole(2)
        mask[1] = 0
        for masks, same in ((NOTHING, [0, 1, 2, 3]), (mask, [1, 3])):
            out = run(guider, blended(), SIGMAS, noise, latent, masks)
            assert relative(out[same], torch.cat([latent, latent])[same]) < 1e-6
        assert "the noise mask is empty" in told[0] and "noise mask 2 of 2 is empty" in told[1]

    def test_a_gradients_mask(self, shapes, told):
        guider, loss, noise = host_guider(shapes[0], *prompts(shapes), 2.0), Pull(), noise_of(LATENT)
        plain = run(guider, EULER, SIGMAS, noise)
        assert torch.equal(run(pulled(guider, NOTHING, loss), EULER, SIGMAS, noise), plain) and not loss.asked
        assert "SteerGradientGuider: the mask is empty (0 everywhere): the loss steers nothing" in told
        both = run(pulled(pulled(guider, NOTHING, loss)), EULER, SIGMAS, noise)
        assert torch.equal(both, run(pulled(guider), EULER, SIGMAS, noise)) and not loss.asked

    def test_a_gradients_mask_of_a_batch(self, shapes, told):
        guider, noise, mask = host_guider(shapes[0], *prompts(shapes), 2.0), noise_of((2, 4, 16, 16)), hole(2)
        mask[0] = 0
        out, plain = (run(each, EULER, SIGMAS, noise) for each in (pulled(guider, mask), guider))
        assert torch.equal(out[0], plain[0])
        assert relative(out[1:], run(pulled(guider, mask[1:]), EULER, SIGMAS, noise[1:])) < 3e-5
        assert "SteerGradientGuider: mask 1 of 2 is empty" in told[0]

    def test_diffedits_mask(self, shapes):
        model, rows = counted(shapes[0])
        latent = noise_of((2, 4, 16, 16))

        def found(mask, pick=slice(None)):
            given = {"samples": latent[pick], "noise_mask": mask}
            return SteerDiffEditMask.execute(model, *prompts(shapes), given, 0.5, 2, 0.3, 0)

        output = found(NOTHING)
        assert not output[0].any() and output[0].shape == (2, 128, 128) and not rows
        assert output.ui["text"][0].count("the mask is empty, since the noise mask of latent_image is") == 2
        mask = torch.ones(2, 1, 16, 16)
        mask[1] = 0
        output = found(mask)
        assert torch.equal(output[0][:1], found(mask[:1], slice(0, 1))[0]) and not output[0][1].any()
        assert "picture 2: the mask is empty, since the noise mask" in output.ui["text"][0]

    @pytest.mark.parametrize("node", ["stitch", "poisson"])
    def test_pastes(self, node, told):
        source, edited = torch.rand(2, 3, 151, 200, 3)

        def paste(mask, pick=slice(None)):
            given = source[pick], edited[pick], mask
            return (SteerStitch.execute(*given, 4) if node == "stitch" else SteerPoissonBlend.execute(*given))[0]

        assert torch.equal(paste(NOTHING), source) and "the mask is empty" in told.pop()
        mask = torch.zeros(3, 151, 200)
        mask[::2, 40:90, 60:120] = 1
        out = paste(mask)
        assert torch.equal(out[1], source[1]) and "mask 2 of 3 is empty" in told.pop()
        assert torch.equal(out[:1], paste(mask[:1], slice(0, 1))) and not torch.equal(out[0], source[0])

    @pytest.mark.parametrize("node", ["latent", "decoder"])
    def test_reconstructions(self, shapes, node, told, monkeypatch):
        vae, latent = shapes[2], noise_of((3, 4, 6, 8))
        source = torch.rand(3, 48, 64, 3)

        def fit(mask, pick=slice(None)):
            given = vae, source[pick], {"samples": latent[pick]}, mask
            if node == "latent":
                return SteerReconstructLatent.execute(*given, 2, 0.1)[0]["samples"]
            return SteerReconstructDecoder.execute(*given, 2, 1e-3)[0]

        as_it_was = latent if node == "latent" else source
        mask = torch.zeros(3, 48, 64)
        mask[::2, 16:32, 16:32] = 1
        out = fit(mask)
        assert torch.equal(out[1], as_it_was[1]) and "mask 2 of 3 is empty" in told[-1]
        assert torch.equal(out[2:], fit(mask[2:], slice(2, 3))) and not torch.equal(out[2], as_it_was[2])
        monkeypatch.setattr(type(vae.first_stage_model), "decode", None)  # a call would fail
        assert torch.equal(fit(NOTHING), as_it_was) and "the mask is empty" in told[-1]

    def test_regions(self, shapes, caplog):
        model, text = shapes[0], "a red circle on a blue background"
        half, noise = torch.zeros(1, 144, 200), noise_of(LATENT)
        half[..., :100] = 1

        def drawn(*masks):
            regions = ()
            for mask, phrase in zip(masks, ("red circle", "blue background"), strict=False):
                regions = SteerRegion.execute(mask, phrase, 1.0, regions)[0]
            painted, positive = SteerPaintWithWords.execute(model, shapes[1], text, regions, 0.4)
            return run(host_guider(painted, positive, encode(shapes[1], ""), 2.0), EULER, SIGMAS, noise)

        plain = run(host_guider(model, *prompts(shapes), 2.0), EULER, SIGMAS, noise)
        assert torch.equal(drawn(NOTHING), plain)
        said = "the mask of 'red circle' is empty (0 everywhere): nothing is painted"
        assert f"SteerRegion: {said}" in caplog.text
        assert SteerRegion.execute(NOTHING, "red circle", 1.0).ui["steer_warning"] == (said,)
        assert torch.equal(drawn(half, NOTHING), drawn(half)) and not torch.equal(drawn(half), plain)

    def test_colours_that_are_not_in_a_map(self):
        image = torch.zeros(2, 8, 8, 3)
        image[0, :4, :, 0] = 1
        output = SteerRegionsFromSegmentation.execute(image, "#ff0000: cat\n#00ff00: grass")
        (red, green), (said,) = output[0], output.ui["steer_warning"]
        assert not green.mask.any() and torch.equal(red.mask, image[..., 0])
        assert "no #ff0000 in picture 2, #00ff00, which paints nothing; its most frequent colours are" in said

    def test_load_images_own(self, shapes):
        """Set Latent Noise Mask on what Load Image gives of a picture without alpha, as in a graph."""
        (latent,) = nodes.SetLatentNoiseMask().set_mask({"samples": noise_of(LATENT)}, NOTHING)
        guider = GUIDERS["cfg"](shapes[0], *prompts(shapes))
        out = run(guider, blended(), SIGMAS, noise_of(LATENT, 1), latent["samples"], latent["noise_mask"])
        assert relative(out, latent["samples"]) < 1e-6
