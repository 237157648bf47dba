"""What text encoders make of words: conditionings of small ones, and the nodes on them."""

from dataclasses import replace

import pytest
import torch
from steer.nodes.attention_maps import phrases_of
from steer.nodes.host.text import encoded, tokenized
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit
from steer.tests.text_encoders import hidreams_tokenizer, small_clip


@pytest.fixture(autouse=True)
def without_eyes(monkeypatch):
    """Qwen-VL's part for pictures is large, and not asked."""
    monkeypatch.setattr("comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer", lambda **sizes: torch.nn.Identity())


WHOLE = ("Mochi", "Flux", "AuraFlow", "Wan", "PixArt")
CAUSAL = ("Z-Image", "Klein", "OmniGen2", "Qwen-Image", "Kandinsky5", "Lumina2")


@pytest.mark.parametrize("name", [*WHOLE, *CAUSAL, "SD3"])
def test_a_word_changes_its_own_embeddings(name):
    """Oracle of the places: of two prompts that differ by a word, most in its row, or from its row on."""
    clip = small_clip(name)
    prompts = [tokenized(clip, f"the red mat and a {animal} on it") for animal in ("cat", "dog")]
    one, other = (encoded(clip, prompt)[0][0] for prompt in prompts)
    assert one.shape == other.shape and one.shape[1] == prompts[0].length
    changes, places = (one - other)[0].norm(dim=-1), prompts[0].positions("cat")
    assert places == prompts[1].positions("dog")
    for stream, span in zip(prompts[0].streams, prompts[0].spans, strict=True):
        (at,) = [place - span.start for place in places if place in span]
        here = changes[span.start : span.stop]
        if stream.name == "l" or name in CAUSAL:
            assert not here[:at].any() and here[at] > 0 and here[at + 1] > 0
        else:
            assert here.argmax() == at and here[0] > 0


def test_hidreams_conditioning_has_three_parts(monkeypatch):
    clip = small_clip("HiDream", hidreams_tokenizer(monkeypatch))
    prompt = tokenized(clip, "the red mat")
    text, options = encoded(clip, prompt)[0]
    assert prompt.length == text.shape[1] + 2 * options["conditioning_llama3"].shape[2] == 384


def test_lengths_that_the_user_sets():
    """By the host's tokenizer options."""
    clip = small_clip("Flux")
    clip.set_tokenizer_option("t5xxl_min_length", 40)
    prompt = tokenized(clip, "the red mat")
    assert prompt.length == encoded(clip, prompt)[0][0].shape[1] == 40 and prompt.positions("mat") == [2]


def test_another_number_of_embeddings_is_said():
    clip = small_clip("SD3")
    prompt = tokenized(clip, "the red mat")
    with pytest.raises(ValueError) as caught:
        encoded(clip, replace(prompt, streams=prompt.streams[:1]))
    assert str(caught.value) == (
        "'the red mat' has 77 tokens (l: 77) and 154 embeddings: this text encoder (SD3Tokenizer) joins others to "
        "them, so words cannot be told apart in its attention"
    )


@pytest.mark.parametrize("name", ["SD3", "Flux", "Z-Image", "Qwen-Image", "Wan"])
def test_the_nodes_name_words_of_every_encoder(name):
    clip = small_clip(name)
    *conditionings, edit = SteerPromptEdit.execute(
        clip, "the red cat on the mat", "the red dog on the mat", "auto", "dog: 2, red: 0.5", "dog: 0.2-0.6"
    ).args
    assert [conditioning[0][0].shape[1] for conditioning in conditionings] == list(edit.mapper.shape)
    dogs, cats = edit.target.positions("dog"), edit.source.positions("cat")
    assert len(dogs) == len(edit.target.streams) and (edit.equalizer[dogs] == 2).all()
    assert (edit.equalizer != 1).sum() == 2 * len(dogs) and [at for at, _ in edit.windows] == dogs
    assert edit.mapper[cats, dogs].eq(1).all() and edit.kept.all()
    torch.testing.assert_close(edit.mapper.sum(1), torch.ones(edit.source.length))
    assert SteerLocalBlend.execute(edit, "cat", "dog, mat", 0.3)[0].blend.source_tokens == tuple(cats)
    assert phrases_of(edit.target, "") == ["red", "dog", "mat"]
    with pytest.raises(
        ValueError, match="SteerLocalBlend: 'bird' is not in the prompt .* its words are: the, red, cat"
    ):
        SteerLocalBlend.execute(edit, "bird", "dog", 0.3)
