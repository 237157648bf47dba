"""Clips through the host: which frames a latent frame holds, masks that pass unchanged, and what samplers keep."""

import re
from inspect import getsource
from types import SimpleNamespace

import comfy.samplers
import comfy.sd
import comfy.utils
import nodes
import pytest
import torch
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
from steer.lab.comfy.random_models import draw_weights
from steer.lab.comfy.runs import Noise, counted, host_guider, noise_of, run, sampled
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from steer.nodes.frames import SteerFrameMask, SteerPadFrames
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host.vae import check_clip
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.stitch import SteerStitch
from steer.tests import checks
from steer.tests.cases import checkered
from steer.tests.families import FAMILIES
from steer.tests.host_models import relative
from steer.tests.tiny_transformers import TINY

WAN = FAMILIES[-1]
EULER = comfy.samplers.sampler_object("euler")
SIGMAS = torch.tensor([0.8, 0.5, 0.2, 0.0])
LTX = {"dims": 3, "latent_channels": 128, "blocks": [["compress_all", 1]] * 3, "patch_size": 4,
       "norm_layer": "pixel_norm", "latent_log_var": "uniform", "encoder_base_channels": 8,
       "decoder_base_channels": 8}  # fmt: skip


def pictures(count, height=64, width=64, seed=0):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def encoded(frames):
    """The LATENT of a clip, by Wan's autoencoder."""
    return nodes.VAEEncode().encode(WAN.vae(), frames)[0]


def masks(latent, first=0, last=-1, mask=None, vae=None):
    return SteerFrameMask.execute(vae or WAN.vae(), latent, first, last, mask).args


def vae_of(ratio=4, channels=16, cell=8, **changes):
    """A VAE as far as the node looks at it."""
    known = {"upscale_ratio": (lambda a: max(0, a * ratio - ratio + 1), cell, cell), "latent_channels": channels,
             "first_stage_model": None, "patcher": None, "spacial_compression_decode": lambda: cell}  # fmt: skip
    return SimpleNamespace(**known | changes)


class TestWhichLatentFrame:
    """What the node goes by, from the networks themselves."""

    @pytest.mark.parametrize("family, ratio, count", [("wan", 4, 13), ("ltx", 8, 17)])
    def test_a_frame_is_first_seen_in_the_latent_frame_that_holds_it(self, family, ratio, count):
        if family == "wan":
            network, side = WAN.vae().first_stage_model.float(), 16
        else:
            network, side = VideoVAE(config=LTX).eval(), 32
            draw_weights(network, 0)
            network.per_channel_statistics.get_buffer("std-of-means").fill_(1)
        x = 2.0 * pictures(count, side, side).movedim(-1, 0)[None] - 1.0
        z = network.encode(x)
        for frame in range(count):
            mask = torch.zeros(count, side, side)
            mask[frame] = 1
            changed = network.encode(x + 0.5 * mask[None, None]) != z
            first = int(changed.any(1).flatten(2).any(2)[0].nonzero()[0])
            made = masks({"samples": z}, mask=mask, vae=vae_of(ratio, z.shape[1], side // z.shape[-1]))[0]
            assert made.flatten(1).amax(1).nonzero().tolist() == [[first]]

    def test_every_video_vae_of_the_host_has_the_first_frame_alone_or_is_refused(self):
        ratios = re.findall(r"upscale_ratio = \((lambda a: .*?), \d+, \d+\)\n", getsource(comfy.sd))
        known = [re.fullmatch(r"lambda a: max\(0, a \* (\d+) - (\d+)\)", each) for each in ratios]
        assert {int(match[1]) for match in known if match} >= {4, 8}
        for match in filter(None, known):
            ratio, less = int(match[1]), int(match[2])
            vae = vae_of(upscale_ratio=(lambda a, ratio=ratio, less=less: max(0, a * ratio - less), 8, 8))
            assert check_clip(vae, torch.zeros(1, 16, 2, 8, 8)) == ratio


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (40, 8), (16, 136)])
def test_a_mask_of_frames_passes_the_host_unchanged(height, width):
    """What the host makes of it for its own samplers, whatever the size."""
    frames, mask = SteerPadFrames.execute(pictures(4, height, width), 0, 5).args
    latent = encoded(frames)
    made, of_frames = masks(latent, mask=mask)
    latent = nodes.SetLatentNoiseMask().set_mask(latent, made)[0]
    host = comfy.utils.reshape_mask(latent["noise_mask"], latent["samples"].shape)
    assert host.shape == latent["samples"].shape and latent["samples"].shape[2] == 3
    assert torch.equal(host, made[None, None].expand_as(host))
    assert made.flatten(1).amax(1).tolist() == made.flatten(1).amin(1).tolist() == [0, 1, 1]
    assert of_frames[:, 0, 0].tolist() == [0] + [1] * 8


def test_a_mask_of_frames_itself_would_be_misplaced_by_the_host():
    """So that the node is needed: of frames 1 to 4, one latent frame, it makes the first alone too."""
    latent, mask = {"samples": noise_of((1, 16, 3, 8, 8))}, torch.zeros(9, 64, 64)
    mask[1:5] = 1
    assert comfy.utils.reshape_mask(mask, (1, 16, 3, 8, 8))[0, 0, :, 0, 0].tolist() == [1, 1, 0]
    assert masks(latent, mask=mask)[0][:, 0, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "first, last, latent, told",
    [
        (0, -1, [1, 1, 1], "0 of 9 frames stay as they are"),
        (5, -1, [0, 0, 1], "5 of 9 frames stay as they are"),
        (1, 4, [0, 1, 0], "5 of 9 frames stay as they are"),
        (-9, 0, [1, 0, 0], "8 of 9 frames stay as they are"),
        (4, 5, [0, 1, 1], "1 of 9 frames stay as they are; 6 more that were to stay share a latent frame"),
    ],
)
def test_a_range_of_frames(first, last, latent, told):
    output = SteerFrameMask.execute(WAN.vae(), {"samples": noise_of((2, 16, 3, 4, 6))}, first, last)
    assert output[0].shape == (3, 4, 6) and output[0][:, 0, 0].tolist() == latent
    assert output.ui["text"][0].startswith(told)


def test_a_part_of_the_frames():
    """A thing's mask in a range; thin lines stay, and a soft edge."""
    latent, mask = {"samples": noise_of((1, 16, 3, 8, 8))}, torch.zeros(9, 64, 64)
    mask[:, 8:16, 17] = 0.5
    mask[7, 60, 60] = 1
    made, of_frames = masks(latent, 5, 8, mask)
    assert not made[:2].any() and made[2, 1, 2] == 0.5 and made[2, 7, 7] == 1 and made[2].count_nonzero() == 2
    assert torch.equal(of_frames[5:], made[2:].expand(4, -1, -1)) and not of_frames[:5].any()
    alike = masks(latent, 5, 8, mask[7])[0]
    assert torch.equal(alike, made)
    of_latents = masks(latent, mask=made)
    assert torch.equal(of_latents[0], made) and torch.equal(of_latents[1], of_frames)


def test_a_clip_is_widened_by_the_hosts_own_padding():
    """One mask for all frames, whatever they are packed into."""
    frames, mask = nodes.ImagePadForOutpaint().expand_image(pictures(5), 0, 0, 32, 0, 0)
    latent = encoded(frames)
    made, of_frames = masks(latent, mask=mask)
    assert made.shape == latent["samples"].shape[2:] == (2, 8, 12) and of_frames.shape == (5, 8, 12)
    assert not made[..., :8].any() and (made[..., 8:] == 1).all()


SAMPLERS = {
    "repaint": lambda: SteerRePaintSampler.execute(2, 1, 1.0)[0],
    "langevin": lambda: SteerLangevinSampler.execute(3, 0.8)[0],
    "blended": lambda: SteerBlendedSampler.execute(EULER, 2)[0],
}
CLIPS = [tiny for tiny in TINY if tiny.name in ("Wan", "LTX-Video", "HunyuanVideo")]
ROOMS = {"continuation": [0, 0, 1, 1], "bridge": [0, 1, 1, 0], "before": [1, 1, 0, 0], "in between": [0, 1, 0, 0]}


def clip_of(tiny):
    """A latent of 4 frames of a family, and a guider of the host's and of ours."""
    shape = (1, tiny.shape[1], 4, *tiny.shape[3:])
    conds = tiny.conditioning(1), tiny.conditioning(2)
    model = tiny.model()
    return noise_of(shape, 5), {
        "host": host_guider(model, *conds, 2.0),
        "steer": SteerCFGGuider.execute(model, *conds, 2.0, 0.0, 1.0, 1.0)[0],
    }


def of_room(room, latent):
    """Its mask as the host gets it from Set Latent Noise Mask."""
    return torch.tensor(room).float().view(-1, 1, 1, 1).expand(-1, 1, *latent.shape[-2:])


@pytest.mark.parametrize("tiny", CLIPS, ids=str)
@pytest.mark.parametrize("sampler, room", checkered(list(SAMPLERS), list(ROOMS)))
def test_kept_latent_frames_stay_bit_for_bit(tiny, sampler, room):
    latent, guiders = clip_of(tiny)
    outs = [run(guider, SAMPLERS[sampler](), SIGMAS, noise_of(latent.shape), latent, of_room(ROOMS[room], latent))
            for guider in guiders.values()]  # fmt: skip
    model = guiders["host"].model_patcher.model
    source = model.process_latent_out(model.process_latent_in(latent))
    for out in outs:
        for frame, new in enumerate(ROOMS[room]):
            if new:
                assert relative(out[:, :, frame], source[:, :, frame]) > 0.1
            else:
                assert torch.equal(out[:, :, frame], source[:, :, frame])
    assert relative(*outs) < 1e-5


@pytest.mark.parametrize("tiny", CLIPS, ids=str)
def test_all_new_is_plain_sampling(tiny):
    """Bit for bit, but for LTX-Video, which computes levels of its places where there is a mask."""
    latent, guiders = clip_of(tiny)
    noise, mask = noise_of(latent.shape), of_room([1, 1, 1, 1], latent)
    plain = run(guiders["host"], EULER, SIGMAS, noise, latent)
    once = SteerLangevinSampler.execute(1, 0.0)[0]
    assert relative(run(guiders["host"], once, SIGMAS, noise, latent, mask), plain) < 1e-5
    out = run(guiders["host"], SteerBlendedSampler.execute(EULER, 0)[0], SIGMAS, noise, latent, mask)
    assert torch.equal(out, plain) or (tiny.name == "LTX-Video" and relative(out, plain) < 1e-5)


@pytest.mark.parametrize(
    "before, after, following, behind", [(0, 4, 0, False), (4, 0, 0, True), (0, 4, 5, True), (0, 0, 5, False)]
)
def test_frames_behind_new_ones_are_told_of(before, after, following, behind):
    """Where the padding is, and so what stands there while the VAE encodes, is known in this node alone."""
    output = SteerPadFrames.execute(pictures(5), before, after, pictures(following) if following else None)
    (text,) = output.ui["text"]
    assert text.startswith(
        f"{before + after} of {5 + before + after + following} frames are new. The mask is for Frame"
    )
    assert ("Stitch" in text) == behind


@pytest.mark.parametrize("before", [1, 5])
def test_what_is_encoded_behind_new_frames_depends_on_what_stands_there(before):
    """So that the text is needed; in front, given frames are encoded as they are."""
    clip = pictures(9)
    front = encoded(SteerPadFrames.execute(clip, 0, 4).args[0])["samples"]
    assert torch.equal(front[:, :, :3], encoded(clip)["samples"])
    frames = SteerPadFrames.execute(clip, before, 4 - before % 4).args[0]
    other = frames.clone()
    other[:before] = 0.5
    kept = masks({"samples": encoded(frames)["samples"]}, mask=SteerPadFrames.execute(clip, before, 4 - before % 4)[1])[
        0
    ]
    stay = kept.flatten(1).amax(1) == 0
    assert stay.any()
    assert relative(encoded(other)["samples"][:, :, stay], encoded(frames)["samples"][:, :, stay]) > 1e-3


class TestEdits:
    """Direct Edit and DiffEdit on clips, and the kept frames put back."""

    @pytest.mark.parametrize("tiny", CLIPS, ids=str)
    def test_a_direct_edit_of_some_frames(self, tiny):
        latent, _ = clip_of(tiny)
        conds = tiny.conditioning(1), tiny.conditioning(2)
        guider = SteerEditGuider.execute(tiny.model(), *conds, 1.0, 2.0, tiny.conditioning(3))[0]
        sampler, zero = SteerDirectEditSampler.execute(0.0, 0.0, 1)[0], torch.zeros_like(latent)
        out = run(guider, sampler, SIGMAS, zero, latent, of_room([0, 1, 1, 0], latent))
        model = guider.model_patcher.model
        source = model.process_latent_out(model.process_latent_in(latent))
        assert torch.equal(out[:, :, [0, 3]], source[:, :, [0, 3]])
        assert (out[:, :, 1:3] != source[:, :, 1:3]).float().mean() > 0.9

    def test_diffedit_marks_frames_and_the_mask_goes_on(self):
        latent = {"samples": noise_of((1, 16, 3, 8, 8), 5), "noise_mask": of_room([0, 1, 1], noise_of((1, 8, 8)))}
        texts = WAN.prompt("a red circle"), WAN.prompt("a dog")
        mask = SteerDiffEditMask.execute(WAN.model(), *texts, latent, 0.3, 4, 0.4, 0)[0]
        assert mask.shape == (3, 64, 64) and not mask[0].any() and mask[1:].any()
        made, of_frames = masks(latent, mask=mask)
        assert torch.equal(made.repeat_interleave(8, 1).repeat_interleave(8, 2), mask)
        assert torch.equal(of_frames[1:5], made[1:2].expand(4, -1, -1)) and not of_frames[0].any()

    def test_stitch_puts_the_kept_frames_back(self):
        clip, edited = pictures(9), pictures(9, seed=1)
        of_frames = masks({"samples": noise_of((1, 16, 3, 8, 8))}, 1, 4)[1]
        out = SteerStitch.execute(clip, edited, of_frames, 8)[0]
        kept = [0, 5, 6, 7, 8]
        assert torch.equal(out[kept], clip[kept]) and torch.equal(out[1:5], edited[1:5])


def test_a_clip_is_continued_by_the_nodes_alone():
    """Pad, encode, mask, sample, decode, stitch, as in a workflow."""
    frames, mask = SteerPadFrames.execute(pictures(5), 0, 4).args
    latent = encoded(frames)
    made, of_frames = masks(latent, mask=mask)
    latent = nodes.SetLatentNoiseMask().set_mask(latent, made)[0]
    guider = host_guider(WAN.model(), WAN.prompt("a red circle"), WAN.prompt(""), 2.0)
    result = sampled(Noise(noise_of(latent["samples"].shape)), guider, SAMPLERS["langevin"](), SIGMAS, latent)
    decoded = nodes.VAEDecode().decode(WAN.vae(), result)[0]
    out = SteerStitch.execute(frames, decoded, of_frames, 8)[0]
    assert out.shape == (9, 64, 64, 3) and torch.equal(out[:5], frames[:5]) and torch.equal(out[5:], decoded[5:])


def bad(message, make):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_what_the_vae_cannot_take_and_ranges_beyond_the_clip(shapes):
    latent = {"samples": noise_of((1, 16, 3, 8, 8))}
    bad("SteerFrameMask: mask is of 11 frames and the clip of 9; the VAE takes 4k .*last 2: .* 2 shorter or 2 longer",
        lambda: masks(latent, mask=torch.ones(11, 64, 64)))  # fmt: skip
    bad("SteerFrameMask: mask is of 7 frames and the clip of 9; give one for all",
        lambda: masks(latent, mask=torch.ones(7, 64, 64)))  # fmt: skip
    bad("SteerFrameMask: first is 9; the clip's frames are 0 to 8", lambda: masks(latent, 9))
    bad("SteerFrameMask: last is -10; the clip's frames are 0 to 8", lambda: masks(latent, 0, -10))
    bad("SteerFrameMask: first is 5 and last 4, which of 9 frames is before it", lambda: masks(latent, 5, 4))
    bad("SteerFrameMask: the mask is 96x64 and the picture 64x64", lambda: masks(latent, mask=torch.ones(9, 64, 96)))
    bad("SteerFrameMask: the mask runs from 0 to 255", lambda: masks(latent, mask=torch.eye(64)[None] * 255))
    bad("SteerFrameMask: vae .* is one of single pictures", lambda: masks(latent, vae=shapes[2]))
    bad("SteerFrameMask: latent_image has the shape .*of a clip", lambda: masks({"samples": noise_of((9, 16, 8, 8))}))
    bad("SteerFrameMask: latent_image has 4 channels and vae 16", lambda: masks({"samples": noise_of((1, 4, 3, 8, 8))}))
    blocks = vae_of(upscale_ratio=(lambda a: max(1, (a - 2) // 5 * 17 + 5), 16, 16))
    bad("SteerFrameMask: vae .* packs frames in blocks", lambda: masks(latent, vae=blocks))
    bad("SteerPadFrames: frames are 64x64 and following 32x64",
        lambda: SteerPadFrames.execute(pictures(2), 0, 1, pictures(2, 64, 32)))  # fmt: skip
    bad("SteerPadFrames: frames has shape .*, 4", lambda: SteerPadFrames.execute(torch.rand(2, 8, 8, 4), 0, 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_masks_of_another_clip_are_refused_before_the_model_runs(sampler):
    model, rows = counted(WAN.model())
    guider = SteerCFGGuider.execute(model, WAN.prompt("a"), WAN.prompt(""), 2.0, 0.0, 1.0, 1.0)[0]
    latent, made = noise_of((1, 16, 3, 8, 8)), masks({"samples": noise_of((1, 16, 4, 8, 8))}, 5, 8)[0]
    with pytest.raises(ValueError, match="4 masks for a batch of 1 latents of 3 frames"):
        run(guider, SAMPLERS[sampler](), SIGMAS, noise_of(latent.shape), latent, made)
    assert not rows


def padded_on_family(family):
    frames, mask = SteerPadFrames.execute(pictures(3), 1, 2).args
    assert torch.equal(frames[1:4], pictures(3)) and mask[:, 0, 0].tolist() == [1, 0, 0, 0, 1, 1]


def mask_on_family(family):
    latent = family.picture()
    made, of_frames = SteerFrameMask.execute(family.vae(), {"samples": latent}, 1, -1).args
    assert made.shape == latent.shape[2:] and made[:, 0, 0].tolist() == [0, 1] and len(of_frames) == 5
    guider = host_guider(family.model(), family.prompt("a red circle"), family.prompt(""), 2.0)
    out = run(guider, SAMPLERS["langevin"](), SIGMAS, noise_of(latent.shape), latent, made)
    torch.testing.assert_close(out[:, :, 0], latent[:, :, 0], rtol=1e-5, atol=1e-5)


def check_padded(world, given, run, output):
    frames, mask = output
    clip, following, before = given["frames"], given.get("following"), given["before"]
    count = before + len(clip) + given["after"] + (0 if following is None else len(following))
    assert frames.shape == (count, *clip.shape[1:]) and mask.shape == frames.shape[:3]
    assert torch.equal(frames[before : before + len(clip)], clip)
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask.mean((1, 2)).sum() == before + given["after"]


def check_masks(world, given, run, output):
    made, of_frames = output
    shape = given["latent_image"]["samples"].shape[2:]
    assert made.shape == shape
    for each in (made, of_frames):
        checks.check_mask(each, *shape[1:])
    assert torch.equal(made[0], of_frames[0]) and torch.equal(made[-1], of_frames[-1])


ORACLE = {
    "SteerPadFrames": ("works on pictures, whatever the model", padded_on_family),
    "SteerFrameMask": ("one for each latent frame; those it leaves out are the source's", mask_on_family),
}
CHECK = {
    "SteerPadFrames": (check_padded, ()),
    "SteerFrameMask": (check_masks, ()),
}
USUAL = {
    "SteerPadFrames": {"before": (0, 1), "after": (0, 2)},
    "SteerFrameMask": {"first": (0, -1, 2), "last": (-1, 4)},
}
