"""Every node on every model family: each cell of docs/families.md is an oracle that held, or the error users get.

`make docs ARGS=tables` runs this with STEER_WRITE=1 and so writes the page; without it the page has to be what was found.
"""

import os
import re
from functools import cache

import comfy.model_management
import comfy.samplers
import folder_paths
import nodes
import pytest
import torch
from steer.attention.core import Site
from steer.files.classifier_file import write_classifier
from steer.lab.comfy.runs import Noise, host_guider, noise_of, run, sampled, sigmas_of
from steer.lab.models import stock
from steer.lab.package import ROOT
from steer.nodes import METHODS
from steer.nodes.attention_maps import SteerAttentionHeatmap, SteerCaptureAttention, SteerInjectAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.classifier import SteerClassifierLoader, SteerClassifierLoss
from steer.nodes.clip_guidance import SteerCLIPImageLoss, SteerCLIPTextLoss
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host.law import noise_law
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.inversion_file import SteerLoadInversion, SteerSaveInversion
from steer.nodes.null_text import SteerNullText
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion, SteerRegionsFromSegmentation
from steer.nodes.poisson_blend import SteerPoissonBlend
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.sdedit import SteerSDEditSigmas
from steer.nodes.stitch import SteerStitch
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.samplers.classifier import Classifier, Network
from steer.tests.cases import checkered
from steer.tests.company import Square
from steer.tests.families import FAMILIES, Family
from steer.tests.host_models import relative

PAGE = ROOT / "docs" / "families.md"
NODE_IDS = [node.define_schema().node_id for method in METHODS for node in method.NODES]
SOURCE, TARGET = "a red circle on a mat", "a green circle on a mat"
EULER = comfy.samplers.sampler_object("euler")
CELLS: dict[tuple[str, str], str] = {}
ORACLES: dict[str, tuple] = {}


def oracle(text, *node_ids):
    """Registers the check of these nodes; `text` is what it shows, on the page."""

    def register(check):
        ORACLES.update({node_id: (text, check) for node_id in node_ids})
        return check

    return register


def guider_of(family: Family, cfg=1.0, text=SOURCE, model=None):
    return host_guider(model or family.model(), family.prompt(text), family.prompt(""), cfg)


def from_level(family, steps=4):
    """Sigmas of a part of the way, where random weights are tame."""
    return SteerSDEditSigmas.execute(family.model(), "normal", steps, 0.2)[0]


def noise(family, seed=1):
    return noise_of(family.shape, seed)


def mask_of(family):
    mask = torch.zeros(1, 1, *family.shape[-2:])
    mask[..., 2:6, 1:5] = 1
    return mask


def outside(family, latent):
    return latent[(mask_of(family) == 0).expand(latent.shape) if latent.ndim == 4 else
                  (mask_of(family)[:, :, None] == 0).expand(latent.shape)]  # fmt: skip


def estimate(guider, family, sigma=1.0):
    """D at one level: the result of one step from it to 0."""
    sigma = min(sigma, 0.7) if noise_law(guider.model_patcher.get_model_object("model_sampling")).flow else sigma
    return run(guider, EULER, torch.tensor([sigma, 0.0]), noise(family), family.picture())


@oracle("equals the host's CFG; three prompts give the formula of their single estimates", "SteerCFGGuider")
def cfg_guider(family):
    model, texts = family.model(), [family.prompt(text) for text in (SOURCE, TARGET, "")]
    ours = SteerCFGGuider.execute(model, texts[0], texts[2], 3.0, 0.0, 1.0, 1.0)[0]
    sigmas = sigmas_of(model, 4)
    expected = run(guider_of(family, 3.0), EULER, sigmas, noise(family))
    assert relative(run(ours, EULER, sigmas, noise(family)), expected) < 1e-5
    three = SteerCFGGuider.execute(model, *texts[:2], 3.0, 0.0, 1.0, 0.5, texts[2])[0]
    positive, negative, empty = (estimate(guider_of(family, text=text), family) for text in (SOURCE, TARGET, ""))
    expected = empty + 3.0 * (positive - empty) - 0.5 * (negative - empty)
    assert relative(estimate(three, family), expected) < 1e-4 and relative(expected, positive) > 1e-3


@oracle("eta 0 equals the host's euler", "SteerDDIMSampler")
def ddim(family):
    guider, sigmas = guider_of(family, 3.0), sigmas_of(family.model(), 4)
    ours = run(guider, SteerDDIMSampler.execute(0.0)[0], sigmas, noise(family))
    assert relative(ours, run(guider, EULER, sigmas, noise(family))) < 1e-4
    assert relative(run(guider, SteerDDIMSampler.execute(1.0)[0], sigmas, noise(family)), ours) > 1e-3


@oracle("the first level is that of the strength, then down to 0", "SteerSDEditSigmas")
def sdedit(family):
    sampling = family.model().get_model_object("model_sampling")
    sigmas, _, start = SteerSDEditSigmas.execute(family.model(), "normal", 7, 0.6).args
    assert float(sigmas[0]) == pytest.approx(start) == pytest.approx(sampling.percent_to_sigma(0.4))
    assert len(sigmas) == 8 and (sigmas[1:] < sigmas[:-1]).all() and sigmas[-1] == 0


@oracle("outside the mask the source; all masked, once and without noise: the host's euler", "SteerRePaintSampler")
def repaint(family):
    guider, sigmas, source = guider_of(family, 2.0), from_level(family), family.picture()
    out = run(guider, SteerRePaintSampler.execute(2, 1, 1.0)[0], sigmas, noise(family), source, mask_of(family))
    torch.testing.assert_close(outside(family, out), outside(family, source), rtol=1e-5, atol=1e-5)
    assert relative(out, source) > 1e-2
    everything, once = torch.ones_like(mask_of(family)), SteerRePaintSampler.execute(1, 1, 0.0)[0]
    plain = run(guider, EULER, sigmas, noise(family), source)
    assert relative(run(guider, once, sigmas, noise(family), source, everything), plain) < 1e-4


@oracle("outside the mask the source; all masked: the inner sampler, bit for bit", "SteerBlendedSampler")
def blended(family):
    guider, sigmas, source = guider_of(family, 2.0), from_level(family), family.picture()
    sampler = SteerBlendedSampler.execute(EULER, 0)[0]
    out = run(guider, sampler, sigmas, noise(family), source, mask_of(family))
    torch.testing.assert_close(outside(family, out), outside(family, source), rtol=1e-5, atol=1e-5)
    plain = run(guider, EULER, sigmas, noise(family), source)
    assert relative(out, plain) > 1e-3
    everything = torch.ones_like(mask_of(family))
    assert torch.equal(run(guider, sampler, sigmas, noise(family), source, everything), plain)


@cache
def inversion_of(family):
    with torch.inference_mode():
        sigmas = from_level(family)
        out = SteerDDIMInversion.execute(guider_of(family), sigmas, {"samples": family.picture()}, 20, 1e-5, False)
        return *out.args, sigmas


@oracle("sampled again it is the picture, to 1e-3", "SteerDDIMInversion")
def inversion(family):
    latent, start, _, sigmas = inversion_of(family)
    assert relative(sampled(start, guider_of(family), EULER, sigmas, latent)["samples"], family.picture()) < 1e-3
    other = sampled(start, guider_of(family, text=TARGET), EULER, sigmas, latent)["samples"]
    assert relative(other, family.picture()) > 1e-3


@oracle("guided sampling comes nearer to the picture than with the plain negative", "SteerNullText")
def null_text(family):
    latent, start, inverted, sigmas = inversion_of(family)
    positive, negative = family.prompt(SOURCE), family.prompt("")
    found = SteerNullText.execute(family.model(), positive, negative, 4.0, inverted, 4, 0.06, 0.0)[0]

    def error(negative):
        guider = host_guider(family.model(), positive, negative, 4.0)
        return relative(sampled(start, guider, EULER, sigmas, latent)["samples"], family.picture())

    assert error(found) < 0.8 * error(negative)


@oracle("comes back bit for bit, with its start", "SteerSaveInversion", "SteerLoadInversion")
def inversion_file(family):
    latent, start, inverted, _ = inversion_of(family)
    saved = SteerSaveInversion.execute(inverted, f"steer_test/{family.name.split()[0]}")
    name = saved.ui["files"][0]
    loaded, samples, begin, sigmas, _ = SteerLoadInversion.execute(
        f"{name['subfolder']}/{name['filename']} [output]"
    ).args
    assert all(map(torch.equal, loaded.latents, inverted.latents)) and sigmas.tolist() == list(inverted.sigmas)
    assert torch.equal(samples["samples"], latent["samples"])
    assert torch.equal(begin.generate_noise(samples), start.generate_noise(latent))


@oracle("outside the mask the source, inside edited; an empty mask is the source bit for bit",
        "SteerTrajectoryBlendSampler")  # fmt: skip
def trajectory_blend(family):
    latent, start, inverted, sigmas = inversion_of(family)
    sampler, guider = SteerTrajectoryBlendSampler.execute(EULER, inverted)[0], guider_of(family, 3.0, TARGET)
    out = sampled(start, guider, sampler, sigmas, {**latent, "noise_mask": mask_of(family)[0]})["samples"]
    assert torch.equal(outside(family, out), outside(family, latent["samples"]))
    assert relative(out, latent["samples"]) > 1e-3
    nothing = {**latent, "noise_mask": 0 * mask_of(family)[0]}
    assert torch.equal(sampled(start, guider, sampler, sigmas, nothing)["samples"], latent["samples"])


@oracle("prompts alike: nothing; unlike: part of the picture, where the estimates differ most", "SteerDiffEditMask")
def diffedit(family):
    texts = [family.prompt(text) for text in (SOURCE, SOURCE, "a dog")]

    def found(other):
        return SteerDiffEditMask.execute(
            family.model(), texts[0], other, {"samples": family.picture()}, 0.3, 4, 0.4, 0
        ).args

    assert not found(texts[1])[0].any()
    mask, heat = found(texts[2])
    frames = family.shape[2] if len(family.shape) == 5 else 1
    assert mask.shape == (frames, 64, 64) and heat.shape == (frames, 64, 64, 3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


@oracle("one embedding for each token, each word at its place", "SteerPromptEdit", "SteerLocalBlend")
def prompt_edit(family):
    source, target, edit = edit_of(family)
    assert source[0][0].shape[1] == target[0][0].shape[1] == edit.source.length
    (green,) = edit.target.positions("green")
    assert edit.source.positions("red") == [green] and float(edit.mapper[green, green]) == 1.0
    blend = SteerLocalBlend.execute(edit, "red", "green", 0.3)[0].blend
    assert blend.source_tokens == blend.target_tokens == (green,)


def edit_of(family):
    source, target, edit = SteerPromptEdit.execute(family.clip(), SOURCE, TARGET, "auto", "").args
    return family.joined(source, family.picture()), family.joined(target, family.picture()), edit


def alone(family, positive, model=None):
    guider = host_guider(model or family.model(), positive, family.prompt(""), 3.0)
    return run(guider, EULER, sigmas_of(family.model(), 4), noise(family))


@oracle("source rows as sampled alone; the target's too with ends 0, and else drawn to the source",
        "SteerPromptToPromptGuider")  # fmt: skip
def prompt_to_prompt(family):
    def together(cross_end, self_end):
        source, target, edit = prompts_for_attention(family)
        guider = SteerPromptToPromptGuider.execute(
            family.model(), source, target, family.prompt(""), 3.0, edit, cross_end, self_end
        ).args[0]
        first, second = run(guider, EULER, sigmas_of(family.model(), 4), noise(family)).chunk(2)
        assert relative(first, alone(family, source)) < 1e-4
        return second, alone(family, target)

    second, plain = together(0.0, 0.0)
    assert relative(second, plain) < 1e-4
    second, plain = together(1.0, 1.0)
    assert relative(second, plain) > 1e-3


def prompts_for_attention(family):
    """The family's own edit, or where its encoder has none an SD1.x one: the model's own limit is what is to be met."""
    try:
        return edit_of(family)
    except ValueError:
        return family.prompt(SOURCE), family.prompt(TARGET), edit_of(FAMILIES[0])[2]


@cache
def recording(family):
    """(positive, edit, the latent sampled, what was captured)"""
    with torch.inference_mode():
        positive, _, edit = prompts_for_attention(family)
        guider = host_guider(family.model(), positive, family.prompt(""), 3.0)
        latent, attention = SteerCaptureAttention.execute(
            Noise(noise(family)), guider, EULER, sigmas_of(family.model(), 4), {"samples": torch.zeros(family.shape)}
        ).args
        return positive, edit, latent["samples"], attention


@oracle("the same latent bit for bit; at each place the words' attention adds up to 1", "SteerCaptureAttention")
def capture(family):
    positive, _, sampled, attention = recording(family)
    assert torch.equal(sampled, alone(family, positive))
    for site, maps in attention.maps.items():
        assert isinstance(site, Site | tuple) and (maps.float().sum(-1) - 1).abs().max() < 1e-2


@oracle("the target as sampled beside its source", "SteerInjectAttention")
def inject(family):
    *_, attention = recording(family)
    source, target, edit = prompts_for_attention(family)
    model = SteerInjectAttention.execute(family.model(), attention, edit, 0.8, 0.4).args[0]
    guider = SteerPromptToPromptGuider.execute(
        family.model(), source, target, family.prompt(""), 3.0, edit, 0.8, 0.4
    ).args[0]
    second = run(guider, EULER, sigmas_of(family.model(), 4), noise(family)).chunk(2)[1]
    assert relative(alone(family, target, model), second) < 1e-3


@oracle("a row for each picture, a map for each word, from 0 to 1", "SteerAttentionHeatmap")
def heatmap(family):
    *_, attention = recording(family)
    picture, maps = SteerAttentionHeatmap.execute(attention, family.clip(), SOURCE, "red, circle").args
    assert picture.shape[0] == 1 and maps.shape == (2, 64, 64) and maps.min() >= 0 and 0.5 < maps.max() <= 1


@oracle("weight 0 is plain sampling bit for bit; more changes the picture", "SteerPaintWithWords")
def paint_with_words(family):
    regions = SteerRegion.execute(torch.nn.functional.pad(torch.ones(1, 64, 32), (0, 32)), "red circle", 1.0)[0]

    def painted(weight):
        model, text = SteerPaintWithWords.execute(family.model(), family.clip(), SOURCE, regions, weight).args
        return alone(family, family.joined(text, family.picture()), model)

    plain = alone(family, family.prompt(SOURCE))
    assert torch.equal(painted(0.0), plain) and relative(painted(2.0), plain) > 1e-3


@oracle("works on pictures, whatever the model", "SteerRegion", "SteerRegionsFromSegmentation")
def regions(family):
    pictures = torch.rand(1, 64, 64, 3)
    assert SteerRegion.execute(torch.ones(1, 64, 64), "red circle", 1.0)[0][0].phrase == "red circle"
    pictures[:, :32] = torch.tensor([1.0, 0.0, 0.0])
    (found,) = SteerRegionsFromSegmentation.execute(pictures, "#ff0000: cat")[0]
    assert found.phrase == "cat" and found.mask[..., :32, :].min() == 1


@oracle("scale 0 is plain bit for bit; else the loss falls, through the model and not", "SteerGradientGuider")
def gradient(family):
    guider, sigmas = guider_of(family, 2.0), from_level(family)

    def guided(scale, through_model):
        steered = SteerGradientGuider.execute(guider, Square(), scale, 0.0, 1.0, through_model, None, 1.0)[0]
        return run(steered, EULER, sigmas, noise(family), family.picture())

    plain = run(guider, EULER, sigmas, noise(family), family.picture())
    distance = lambda x: (family.model().model.process_latent_in(x) - 0.8).square().mean()  # noqa: E731
    for through_model in (True, False):
        assert torch.equal(guided(0.0, through_model), plain)
        assert distance(guided(0.5, through_model)) < 0.95 * distance(plain)
    assert torch.equal(run(guider, EULER, sigmas, noise(family), family.picture()), plain)


@oracle("the label becomes likelier", "SteerClassifierLoader", "SteerClassifierLoss")
def classifier(family):
    guider, sigmas = guider_of(family), from_level(family)
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
        latent = model.model.process_latent_in(run(guider, EULER, sigmas, noise(family), family.picture()))
        return float(loaded.log_probs(latent, 0.01)[0, 1])

    assert likely(steered) > likely(guider) + 0.05


@cache
def pair():
    with torch.inference_mode():
        return stock.load_clip_pair()


def closer(family, loss, target):
    """Whether one guided step brings the decoded picture closer to the target."""
    guider = guider_of(family)
    steered = SteerGradientGuider.execute(guider, loss, 30.0, 0.0, 1.0, False, None, 0.3)[0]

    def distance(guider):
        pictures = nodes.VAEDecode().decode(family.vae(), {"samples": estimate(guider, family, 0.3)})[0]
        embedded = torch.nn.functional.normalize(pair()[1].encode_image(pictures)["image_embeds"], dim=-1)
        return float((embedded - torch.nn.functional.normalize(target, dim=-1)).norm(dim=-1).mean())

    return distance(steered) < distance(guider)


@oracle("one step brings the picture closer to the text", "SteerCLIPTextLoss")
def clip_text(family):
    loss = SteerCLIPTextLoss.execute(pair()[1], family.vae(), pair()[0], "a green star", 8)[0]
    assert closer(family, loss, loss.target)


@oracle("one step brings the picture closer to the other", "SteerCLIPImageLoss")
def clip_image(family):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)).square()
    loss = SteerCLIPImageLoss.execute(pair()[1], family.vae(), image, 8)[0]
    assert closer(family, loss, loss.target)


@cache
def background(family):
    """(the source, an edit's latent, the edit decoded, the mask)"""
    with torch.inference_mode():
        source, edited = (
            nodes.VAEDecode().decode(family.vae(), {"samples": 0.3 * latent})[0]
            for latent in (family.picture(), noise(family))
        )
        mask = torch.zeros(1, 64, 64)
        mask[:, 16:48, 16:40] = 1
        return source, 0.3 * noise(family), edited, mask


def error(picture, family):
    source, _, _, mask = background(family)
    return float(((picture - source) * (1 - mask)[..., None]).square().mean())


@oracle("outside the mask the source, inside the edit", "SteerStitch")
def stitch(family):
    source, _, edited, mask = background(family)
    out = SteerStitch.execute(source, edited, mask, 0)[0]
    assert torch.equal(out[:, mask[0] == 0], source[:, mask[0] == 0])
    torch.testing.assert_close(out[:, mask[0] == 1], edited[:, mask[0] == 1], rtol=1e-4, atol=1e-4)


@oracle("outside the mask the source, inside the edit's gradients", "SteerPoissonBlend")
def poisson(family):
    source, _, edited, mask = background(family)
    out = SteerPoissonBlend.execute(source, edited, mask)[0]
    assert torch.equal(out[:, mask[0] == 0], source[:, mask[0] == 0])
    assert out.shape == edited.shape and not torch.equal(out, source)


@oracle("the decoded background comes nearer to the source", "SteerReconstructLatent")
def reconstruct_latent(family):
    source, latent, edited, mask = background(family)
    fitted = SteerReconstructLatent.execute(family.vae(), source, {"samples": latent}, mask, 8, 0.05)[0]
    assert error(nodes.VAEDecode().decode(family.vae(), fitted)[0], family) < 0.9 * error(edited, family)


@oracle("the decoded background comes nearer to the source", "SteerReconstructDecoder")
def reconstruct_decoder(family):
    source, latent, edited, mask = background(family)
    fitted = SteerReconstructDecoder.execute(family.vae(), source, {"samples": latent}, mask, 8, 1e-3)[0]
    assert error(fitted, family) < 0.9 * error(edited, family)


@pytest.fixture(autouse=True)
def folders(tmp_path_factory, monkeypatch):
    output = tmp_path_factory.getbasetemp() / "families_output"
    output.mkdir(exist_ok=True)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))


def test_every_node_has_an_oracle():
    assert sorted(ORACLES) == sorted(NODE_IDS)


@pytest.mark.parametrize("node_id, family", checkered(NODE_IDS, FAMILIES, 2), ids=lambda value: str(value))
def test_works_or_says_why_not(family, node_id):
    try:
        ORACLES[node_id][1](family)
        CELLS[node_id, family.name] = ""
    except ValueError as error:
        assert str(error).startswith("Steer"), error
        CELLS[node_id, family.name] = str(error)
    if not os.environ.get("STEER_WRITE"):
        assert CELLS[node_id, family.name].partition(": ")[2] == written(node_id, family)


def written(node_id, family) -> str:
    """What the page says of a cell, in the node's words without its name."""
    text = PAGE.read_text()
    (row,) = re.findall(rf"^\| `{node_id}` \| (.*) \|$", text, re.MULTILINE)
    sign = row.split(" | ")[FAMILIES.index(family)]
    return "" if sign == "+" else dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))[sign]


def page() -> str:
    """docs/families.md"""
    notes: list[str] = []
    lines = [
        "# Which node works with which model family",
        "",
        "Found by `tests/host/test_families.py`, on small models with random weights made by ComfyUI's own classes.",
        "+ works: what is listed below was shown. A number: what the node says instead, before the model runs.",
        "",
        "| node | " + " | ".join(family.name for family in FAMILIES) + " |",
        "|---" * (1 + len(FAMILIES)) + "|",
    ]
    for node_id in NODE_IDS:
        said = [CELLS[node_id, family.name].partition(": ")[2] for family in FAMILIES]
        notes += [text for text in dict.fromkeys(said) if text and text not in notes]
        lines.append(f"| `{node_id}` | " + " | ".join(f"{notes.index(s) + 1}" if s else "+" for s in said) + " |")
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(notes, 1)), "", "What each + has shown:", ""]
    lines += [f"- `{node_id}`: {ORACLES[node_id][0]}" for node_id in NODE_IDS]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_was_found():
    if len(CELLS) < len(NODE_IDS) * len(FAMILIES):
        pytest.skip("only a part of the matrix was run, or a cell failed")
    if os.environ.get("STEER_WRITE"):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page())
    assert PAGE.read_text() == page()
