"""The words of every text encoder that the host brings, and where they stand in its conditioning."""

from functools import cache
from types import SimpleNamespace

import comfy.sd1_clip
import pytest
import torch
from safetensors.torch import save_file
from steer.attention.spelling import spelled_bytes
from steer.nodes.host.text import tokenized
from steer.tests.text_encoders import CAT, DOG, ENCODERS, clip_of, found, hidreams_tokenizer, pieces_of_sentences

NO_WEIGHTS = {
    "Flux.2", "Klein", "HunyuanImage", "HunyuanVideo 1.5", "Qwen-Image", "LongCat", "Kandinsky5", "Kandinsky5 image",
    "Z-Image", "Ovis", "Krea2", "Boogu", "Ideogram4", "JoyImage", "MageFlow", "PixelDiT",
}  # fmt: skip
every_encoder = pytest.mark.parametrize("name", ENCODERS)


@cache
def clips_words(text):
    tokenizer = comfy.sd1_clip.SD1Tokenizer()
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=None)
    return texts(tokenized(clip, text))


def texts(prompt):
    return [word.text for word in prompt.words]


def kinds(stream):
    """How many tokens are a start, the user's, an end, padding."""
    return tuple([token.kind for token in stream.tokens].count(kind) for kind in ("start", "", "end", "padding"))


def spelt(prompt, positions):
    """What the tokens of a stream at these positions spell together."""
    pieces = [(stream, token) for stream in prompt.streams for token in stream.tokens]
    return b"".join(spelled_bytes(pieces[at][1].piece, pieces[at][0].spelling) for at in positions).decode(
        errors="replace"
    )


@every_encoder
@pytest.mark.parametrize("text", [CAT, DOG, "the cat", "", "  "])
def test_the_same_words_in_every_encoder(name, text):
    assert texts(tokenized(clip_of(name), text)) == clips_words(text)


@every_encoder
def test_words_are_where_their_tokens_are(name):
    """In each stream each word's tokens spell it, and all of the user's tokens but spaces are a word's."""
    prompt = tokenized(clip_of(name), CAT)
    for stream, span in zip(prompt.streams, prompt.spans, strict=True):
        if stream.spelling == "CLIP":
            continue
        for word in prompt.words:
            assert spelt(prompt, [at for at in word.positions if at in span]).strip().lower() == word.text
        own = {at for word in prompt.words for at in word.positions if at in span}
        left = [at for at in span if at not in own and not prompt.tokens[at].special]
        assert spelt(prompt, left).strip() == ""


@pytest.mark.parametrize("name", ["Mochi", "Qwen-Image"])
@pytest.mark.parametrize("text", [CAT, DOG, "a T-rex of 1985, by O'Reilly: (big:1.5) 'sun' 猫犬 x_y", "naïve café"])
def test_positions_are_those_of_the_tokenizers_own_offsets(name, text):
    clip = clip_of(name)
    inner = getattr(clip.tokenizer, "clip_t5xxl", None) or clip.tokenizer.qwen25_7b
    if not getattr(inner.tokenizer, "is_fast", False):
        pytest.skip("this tokenizer tells no offsets")
    offsets = inner.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    prompt = tokenized(clip, text.replace("(", r"\(").replace(")", r"\)") if name == "Mochi" else text)
    at = 0
    for word in prompt.words:
        if "\ufffd" in word.text:
            continue
        start = text.lower().index(word.text, at)
        at = end = start + len(word.text)
        # a space of its own has the offset of the letter after it
        inside = [n for n, (first, last) in enumerate(offsets) if first < end and last > start]
        there = [n for n in inside if spelt(prompt, [n]).strip()]
        assert list(word.positions) == there, word


@every_encoder
def test_weights_are_read_as_the_encoder_reads_them(name):
    prompt = tokenized(clip_of(name), "the (red:1.3) cat")
    if name in NO_WEIGHTS:
        assert texts(prompt) == ["the", "(", "red", ":", "1", ".", "3", ")", "cat"]
        assert prompt.positions("(red:1.3) cat") and prompt.positions("(red:1.3)") == prompt.positions("red")
    else:
        assert texts(prompt) == ["the", "red", "cat"] == texts(tokenized(clip_of(name), "the red cat"))
        assert set(prompt.positions("(red:1.3) cat")) == {*prompt.positions("red"), *prompt.positions("cat")}


@pytest.mark.parametrize(
    ("name", "dropped", "expected"),
    [
        ("Qwen-Image", 34, (0, 2, 5, 0)),
        ("Krea2", 34, (0, 2, 5, 0)),
        ("MageFlow", 34, (0, 2, 5, 0)),
        ("HunyuanImage", 34, (0, 2, 1, 0)),
        ("Z-Image", 0, (3, 2, 5, 0)),
        ("Kandinsky5", 127, (0, 2, 1, 0)),
        ("LongCat", 36 + 5, (0, 2, 0, 510)),
        ("OmniGen2", 0, (23, 2, 2, 0)),
        ("Klein", 0, (3, 2, 9, 498)),
        ("HunyuanVideo", 95, (0, 2, 1, 0)),
        ("Mochi", 0, (0, 2, 1, 253)),
        ("PixArt", 0, (0, 2, 1, 0)),
        ("Lumina2", 0, (1, 2, 0, 0)),
        ("Wan", 0, (0, 2, 1, 509)),
    ],
)
def test_templates_are_cut(name, dropped, expected):
    """What the encoder drops is not there; of what is, all but the two words is a template's, an end or padding."""
    clip = clip_of(name)
    (stream,) = tokenized(clip, "the cat").streams
    assert kinds(stream) == expected
    assert dropped == sum(map(len, clip.tokenize("the cat")[stream.name])) - len(stream.tokens)
    assert kinds(tokenized(clip, "").streams[0])[1] == 0


def test_streams_are_in_the_order_of_the_conditioning():
    assert [(s.name, len(s.tokens)) for s in tokenized(clip_of("SD3"), CAT).streams] == [("l", 77), ("t5xxl", 77)]
    assert [s.name for s in tokenized(clip_of("Flux"), CAT).streams] == ["t5xxl"]
    assert [s.name for s in tokenized(clip_of("Anima"), CAT).streams] == ["t5xxl"]
    assert [s.name for s in tokenized(clip_of("HunyuanImage"), f'"text" {CAT}').streams] == ["qwen25_7b"]
    long = tokenized(clip_of("SD3"), "a cat, " * 40)
    assert [(s.name, len(s.tokens)) for s in long.streams] == [("l", 154), ("t5xxl", 161)]
    assert len(long.positions("cat")) == 80


@pytest.mark.parametrize(
    ("lacks", "names"),
    [("l", ["l", "t5xxl"]), ("g", ["l", "t5xxl"]), ("t5", ["l"]), ("l, g", ["t5xxl"]), ("l, g, t5", [""])],
)
def test_encoders_that_are_not_loaded_have_no_columns(lacks, names):
    """CLIP's two stand side by side: either has the places of both. Without any the host makes 77 zeros."""
    lacking = {name if name == "t5" else f"clip_{name}": False for name in lacks.split(", ")}
    model = found("sd3_clip.sd3_clip")(**lacking)(device="meta", dtype=torch.float16)
    clip = SimpleNamespace(**{**vars(clip_of("SD3")), "cond_stage_model": model})
    prompt = tokenized(clip, CAT)
    assert [(s.name, len(s.tokens)) for s in prompt.streams] == [(name, 77) for name in names]
    assert texts(prompt) == (clips_words(CAT) if names != [""] else [])


def test_a_template_of_the_users_own():
    """Qwen-Image takes it as it is and drops it up to the user's text."""
    text = "<|im_start|>system\nDraw.<|im_end|>\n<|im_start|>user\nthe red cat<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenized(clip_of("Qwen-Image"), text)
    assert texts(prompt) == ["the", "red", "cat"] and prompt.positions("red cat") == [1, 2]


def test_hidream_says_each_word_three_times(monkeypatch):
    """T5's 128 tokens at most, then Llama's twice; what T5 has no place for is in Llama's."""
    tokenizer = hidreams_tokenizer(monkeypatch)
    model = found("hidream.hidream_clip")()(device="meta", dtype=torch.float16)
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=model)
    prompt = tokenized(clip, CAT)
    assert [(s.name, len(s.tokens)) for s in prompt.streams] == [("t5xxl", 128), ("llama", 128), ("llama", 128)]
    assert texts(prompt) == clips_words(CAT)
    first, second = prompt.positions("cat")[1:]
    assert 128 < first < 256 and second == first + 128
    long = tokenized(clip, "the dog, " * 60 + "the cat")
    assert len(long.streams[0].tokens) == 128 < len(long.streams[1].tokens)
    assert len(long.positions("cat")) == 2 and len(long.positions("dog")) > 120


def test_words_that_share_a_token():
    text = "a T-rex of 1985"
    for name in ENCODERS.keys() - {"HiDream", "HunyuanVideo"}:
        try:
            prompt = tokenized(clip_of(name), text)
        except pytest.skip.Exception:
            continue
        assert "".join(texts(prompt)) == "at-rexof1985", name
        taken = [at for word in prompt.words for at in word.positions]
        assert len(taken) == len(set(taken)), name
        for phrase in ("T-rex", "1985", "rex of"):
            assert prompt.positions(phrase), (name, phrase)
    assert texts(tokenized(clip_of("Mochi"), text)) == ["a", "t", "-", "rex", "of", "1985"]
    assert texts(tokenized(clip_of("Qwen-Image"), text))[:3] == ["a", "t", "-rex"]
    assert texts(tokenized(clip_of("SD3"), text)) == ["a", "t", "-", "rex", "of", "1985"]


@pytest.mark.parametrize("name", ["Mochi", "Flux", "PixArt", "Anima"])
def test_what_t5_cannot_read_is_said(name):
    prompt = tokenized(clip_of(name), "a naïve cat, 猫")
    assert len(prompt.words) == 5
    for phrase in ("naïve", "猫"):
        with pytest.raises(ValueError) as caught:
            prompt.positions(phrase)
        assert f"{phrase!r} is not in the prompt 'a naïve cat, 猫'" in str(caught.value)
        unread = "not to be named, since t5xxl cannot read all of their characters: na\ufffdve, \ufffd"
        assert str(caught.value).endswith(f"its words are: a, cat; {unread}")
    known = tokenized(clip_of("SD3"), "a naïve cat, 猫")
    assert texts(known) == ["a", "naïve", "cat", ",", "猫"] and {at // 77 for at in known.positions("naïve")} == {0, 1}


@pytest.mark.parametrize("name", ["Qwen-Image", "Z-Image", "AuraFlow", "Lumina2"])
def test_vocabularies_with_bytes_read_all(name):
    prompt = tokenized(clip_of(name), "a naïve 猫 🐱")
    assert texts(prompt) == ["a", "naïve", "猫", "🐱"] and all(prompt.positions(word) for word in texts(prompt))


def test_embeddings_in_other_encoders(tmp_path):
    save_file({"t5xxl": torch.randn(3, 4096)}, tmp_path / "toy.safetensors")
    tokenizer = found("flux.FluxTokenizer")(embedding_directory=str(tmp_path))
    model = found("flux.flux_clip")()(device="meta", dtype=torch.float16)
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=model)
    prompt = tokenized(clip, "the red embedding:toy cat")
    assert texts(prompt) == ["the", "red", "embedding:toy", "cat"] and prompt.positions("embedding:toy") == [2, 3, 4]
    save_file({"t5xxl": torch.randn(3, 768)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="768 wide, and the text encoder .t5xxl. takes 4096"):
        tokenized(clip, "the red embedding:other cat")


def test_encoders_whose_words_cannot_be_told_are_refused():
    data = {"mt5xl.spiece_model": pieces_of_sentences(False), "spiece_model": pieces_of_sentences(True)}
    tokenizer, model = found("hydit.HyditTokenizer")(tokenizer_data=data), found("hydit.HyditModel")
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
    with torch.device("meta"):
        clip.cond_stage_model = model(dtype=torch.float16)
    with pytest.raises(
        ValueError, match="this text encoder .HyditTokenizer. has no CLIP tokens, so words cannot be told"
    ):
        tokenized(clip, CAT)
    tokenizer, model = found("lt.LTXAVGemmaTokenizer")(tokenizer_data=data), found("lt.LTXAVTEModel")(device="meta")
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=model)
    with pytest.raises(ValueError, match="this text encoder .LTXAVGemmaTokenizer. joins its tokens to others or mixes"):
        tokenized(clip, CAT)
