"""The editor's search leads from the words that people type to the node."""

import pytest
from steer.lab.comfy.editor import Editor
from steer.tests.cases import some

WORDS = {
    "p2p": "Prompt Edit",
    "prompt to prompt": "Prompt-to-Prompt Guider",
    "edit photo": "Prompt Edit",
    "replace word": "Prompt Edit",
    "swap word": "Prompt Edit",
    "word weight": "Prompt Edit",
    "reweight": "Prompt Edit",
    "direct inversion": "Prompt-to-Prompt Guider",
    "local edit": "Local Blend",
    "keep background": "Stitch",
    "mask from text": "DiffEdit Mask",
    "find what changes": "DiffEdit Mask",
    "invert image": "DDIM Inversion",
    "image to noise": "DDIM Inversion",
    "real image editing": "DDIM Inversion",
    "null text inversion": "Null-Text Optimization",
    "outpaint": "Langevin Sampler",
    "remove object": "Langevin Sampler",
    "uncrop": "RePaint Sampler",
    "masked edit": "Blended Diffusion Sampler",
    "img2img": "SDEdit Sigmas",
    "redraw": "SDEdit Sigmas",
    "sketch to image": "SDEdit Sigmas",
    "negative prompt": "CFG Guider",
    "clip guidance": "CLIP Text Loss",
    "universal guidance": "Gradient Guider",
    "style transfer": "CLIP Image Loss",
    "classifier guidance": "Classifier Loss",
    "daam": "Attention Heatmap",
    "word map": "Attention Heatmap",
    "feature injection": "Inject Attention",
    "regional prompt": "Paint with Words",
    "attention couple": "Paint with Words",
    "area prompt": "Region",
    "diffedit": "Trajectory Blend Sampler",
    "seamless clone": "Poisson Blend",
    "paste back": "Stitch",
    "restore details": "Reconstruct Background: Decoder",
    "store trajectory": "Save Inversion",
}


@pytest.fixture(scope="module")
def editor(server):
    if not server.object_info()["SteerPromptEdit"].get("search_aliases"):
        pytest.skip("this ComfyUI knows no search aliases")
    with Editor(server.url) as opened:
        yield opened


@pytest.mark.parametrize("words", some(WORDS, *list(WORDS)[::4]))
def test_the_words_lead_to_the_node(editor, words):
    assert f"{WORDS[words]} (Steer)" in editor.search(words)[:5]
