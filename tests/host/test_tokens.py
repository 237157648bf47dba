from types import SimpleNamespace

import comfy.sd1_clip
import comfy.sdxl_clip
import pytest
import torch
from safetensors.torch import save_file
from steer.attention.alignment import mapper
from steer.attention.paint_with_words import Painting, Region
from steer.attention.tokens import prompt_of
from steer.attention.word_values import word_values
from steer.nodes.attention_maps import phrases_of
from steer.nodes.host.text import embeddings_of
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit
from steer.pictures.legend import parse_legend

EMBEDDINGS = {"toy": 3, "long": 10, "my-style_v1.2": 2, "sub/deep": 3, "one": 1, "by(me)": 2}
WIDTHS = {"l": 768, "g": 1280}


def vectors_of(name, width):
    """(vectors, width) of an embedding."""
    return torch.randn(EMBEDDINGS[name], width, generator=torch.Generator().manual_seed(len(name)))


def folder_of(folder, **widths):
    """A folder with all embeddings, for encoders of these widths."""
    (folder / "sub").mkdir()
    for name in EMBEDDINGS:
        held = {f"clip_{encoder}": vectors_of(name, width) for encoder, width in widths.items()}
        save_file(held, folder / f"{name}.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("embeddings"), **WIDTHS)


@pytest.fixture(scope="module")
def sd1(embeddings):
    return comfy.sd1_clip.SD1Tokenizer(embedding_directory=embeddings)


@pytest.fixture(scope="module")
def sdxl(embeddings):
    return comfy.sdxl_clip.SDXLTokenizer(embedding_directory=embeddings)


def prompts(tokenizer, text):
    """{encoder: prompt}"""
    made, by_encoder, clip = {}, tokenizer.tokenize_with_weights(text), clip_of(tokenizer)
    for name, chunks in by_encoder.items():
        pieces = getattr(tokenizer, f"clip_{name}").inv_vocab
        vectors = iter(embeddings_of(clip, text, by_encoder, name))
        rows = [[next(vectors) if torch.is_tensor(token) else pieces[token] for token, _ in chunk] for chunk in chunks]
        made[name] = prompt_of(text, rows)
    return made


def clip_of(tokenizer):
    """A text encoder of which only the words matter."""
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=None)


def prompt(tokenizer, text):
    return prompts(tokenizer, text)["l"]


def texts(of):
    return [word.text for word in of.words]


SENTENCES = [
    "a (squirrel:1.2) eating a burger, it's  a T-shirt!",
    "An axolotl and a schnauzer; a capybara, 2024.",
    "café, naïve, 3d co-op, don't O'Reilly",
    "wow!!! 🐱 猫 ((very)) [big] \\(paren\\) ok...",
    "",
    "a embedding:toy cat, embedding:toy",
]
HOST_WORDS = [
    ["a", "squirrel", "eating", "a", "burger", ",", "it", "'s", "a", "t", "-", "shirt", "!"],
    ["an", "axolotl", "and", "a", "schnauzer", ";", "a", "capybara", ",", "2", "0", "2", "4", "."],
    ["café", ",", "naïve", ",", "3", "d", "co", "-", "op", ",", "don", "'t", "o", "'re", "illy"],
    ["wow", "!!!", "🐱", "猫", "very", "[", "big", "]", "(", "paren", ")", "ok", "..."],
    [],
    ["a", "embedding:toy", "cat", ",", "embedding:toy"],
]


@pytest.mark.parametrize("text, words", list(zip(SENTENCES, HOST_WORDS, strict=True)))
def test_words_of_the_hosts_tokenizer(sd1, text, words):
    assert texts(prompt(sd1, text)) == words


@pytest.mark.parametrize("text", [*SENTENCES, "a cat, " * 60, "a " * 73 + "axolotl embedding:long cat!"])
def test_both_encoders_of_sdxl_give_the_same_words_and_positions(sd1, sdxl, text):
    both = prompts(sdxl, text)
    assert both["g"].words == both["l"].words == prompt(sd1, text).words
    assert both["g"].length == both["l"].length
    for large, small in zip(both["g"].tokens, both["l"].tokens, strict=True):
        assert large.special == small.special
    assert both["g"].tokens[-1].piece == "!" != both["l"].tokens[-1].piece  # id 0 is its padding


def test_every_word_that_is_typed_is_found_where_its_own_tokens_are(sd1):
    typed = (
        "Squirrel, axolotl chihuahua Schnauzer T-shirt don't café O'Reilly rock'n'roll 3d 2024 naïve 猫 🐱 İstanbul ΣΑΣ"
    )
    typed = f"{typed} supercalifragilisticexpialidocious ½ straße co-op u.s.a. hello_world x@y.z".split()
    of = prompt(sd1, " ".join(typed))
    covered = []
    for word in typed:
        alone = prompt(sd1, word.strip(",."))
        pieces = [token.piece for token in alone.tokens if not token.special]
        found = of.positions(word)
        assert [of.tokens[position].piece for position in found] == pieces, word
        covered += found
    assert len(covered) == len(set(covered))


def test_weights_make_no_difference(sd1):
    plain, weighted = prompt(sd1, "a big cat and a dog"), prompt(sd1, "a ((big) cat:1.2) and a (dog:0.5)")
    assert plain.words == weighted.words
    assert weighted.positions("(big:1.2) cat") == weighted.positions("big cat") == [2, 3]


def test_a_prompt_of_150_tokens(sd1):
    text = "a cat, " * 24 + "a Schnauzer, " + "a dog, " * 24 + "a cat"
    of = prompt(sd1, text)
    assert of.length == 154 and sum(not token.special for token in of.tokens) == 150
    # 72 tokens of cats from 1 on, `a`, `schnau zer` up to the end at 76; the second chunk starts at 77
    assert of.positions("cat") == [2 + 3 * n for n in range(24)] + [152]
    assert of.positions("schnauzer") == [74, 75] and of.positions("dog") == [80 + 3 * n for n in range(24)]
    assert [p for p, token in enumerate(of.tokens) if token.special] == [0, 76, 77, 153]
    assert prompt(sd1, text + " tree").positions("tree") == [155]  # in a third chunk


def test_a_word_split_between_chunks(sd1):
    of = prompt(sd1, "a " * 73 + "axolotl sits")
    assert of.positions("axolotl") == [74, 75, 78, 79] and of.positions("sits") == [80]
    assert [of.tokens[p].piece for p in of.positions("axolotl")] == ["ax", "o", "lot", "l</w>"]


def test_embeddings(sd1):
    of = prompt(sd1, "a embedding:toy cat, embedding:toy")
    assert of.positions("embedding") == [2, 3, 4, 7, 8, 9] and of.positions("cat") == [5]
    matrix, kept = mapper(of, prompt(sd1, "a big dog, cat"), "replace")
    assert matrix[[2, 3, 4], 2].tolist() == [1.0] * 3 and matrix[5, 3] == 1.0 and kept.all()
    split = prompt(sd1, "a " * 70 + "embedding:long cat")
    assert split.positions("embedding") == [71, 72, 73, 74, 75, 78, 79, 80, 81, 82] and split.positions("cat") == [83]
    assert split.positions("embedding:long") == split.positions("embedding")


@pytest.mark.parametrize(
    ("text", "phrase", "name", "positions"),
    [
        ("a embedding:toy embedding:one cat", "embedding:toy", "toy", [2, 3, 4]),
        ("a embedding:toy embedding:one cat", "embedding:one", "one", [5]),
        ("embedding:one embedding:one, embedding:toy", "embedding:one", "one", [1, 2]),
        ("a embedding:my-style_v1.2, by embedding:toy, cat", "embedding:my-style_v1.2", "my-style_v1.2", [2, 3]),
        ("a embedding:my-style_v1.2, by embedding:toy, cat", "embedding:toy,", "toy", [6, 7, 8]),
        ("a embedding:sub/deep and embedding:toy", "embedding:sub/deep", "sub/deep", [2, 3, 4]),
        ("a (embedding:toy:1.2), (embedding:sub/deep:0.8) cat", "(embedding:sub/deep:1.5)", "sub/deep", [6, 7, 8]),
        ("a ((embedding:toy)), (a embedding:one: 1.1) cat", "embedding:one", "one", [7]),
        ("a (embedding:toy, embedding:one:1.2)", "embedding:toy", "toy", [2, 3, 4]),
        ("a\nembedding:one\nembedding:toy", "Embedding:Toy", "toy", [3, 4, 5]),
        (r"a embedding:by\(me\) cat", r"embedding:by\(me\)", "by(me)", [2, 3]),
        ("a embedding:toy.safetensors cat", "embedding:toy.safetensors", "toy", [2, 3, 4]),
        ("a embedding:missing embedding:one cat", "embedding:one", "one", [2]),
        ("a,embedding:toy embedding:one", "embedding:one", "one", [7]),  # the first is read as words
    ],
)
def test_embeddings_by_their_names(sd1, sdxl, text, phrase, name, positions):
    """As people write them; in their places are the vectors of the file."""
    for tokenizer in (sd1, sdxl):
        by_encoder = tokenizer.tokenize_with_weights(text)
        for encoder, of in prompts(tokenizer, text).items():
            tokens = [token for chunk in by_encoder[encoder] for token, _ in chunk]
            assert of.positions(phrase) == positions
            found = torch.stack([tokens[position] for position in positions]).unflatten(0, (-1, EMBEDDINGS[name]))
            assert (found == vectors_of(name, WIDTHS[encoder])).all()


@pytest.fixture
def clip(shapes, tmp_path, monkeypatch):
    """The shapes model's, with embeddings of its width."""
    width = shapes[1].cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[-1]
    monkeypatch.setattr(shapes[1].tokenizer.clip_l, "embedding_directory", folder_of(tmp_path, l=width))
    return shapes[1]


def test_embeddings_in_what_people_write_into_nodes(clip):
    """`a` is at 1, the first embedding at 2 to 4, `,` at 5 and the second at 6."""
    text = "a embedding:toy, (embedding:one:1.1) cat"
    *_, edit = SteerPromptEdit.execute(
        clip, "a dog, dog cat", text, "auto", "embedding:toy: 2, (embedding:one:1.1): 0.5", "embedding:one: 0.2-0.6"
    ).args
    assert edit.equalizer[:9].tolist() == [1, 1, 2, 2, 2, 1, 0.5, 1, 1]
    assert edit.windows == ((6, (0.2, 0.6)),)
    blend = SteerLocalBlend.execute(edit, "dog", "embedding:one, cat", 0.3)[0].blend
    assert blend.target_tokens == (6, 7)
    entry = parse_legend("#ff0000: embedding:toy @ 0.5")[0]
    painting = Painting((Region(torch.ones(8, 8), entry.phrase, entry.strength),), edit.target, 0.4)
    assert painting.map((2, 2), 77, "cpu")[0, 0, 0, :8].tolist() == [0, 0, 0.5, 0.5, 0.5, 0, 0, 0]
    assert phrases_of(edit.target, "") == ["embedding:toy", "embedding:one", "cat"]


def test_an_embedding_of_another_model_is_said(clip, tmp_path):
    """The host leaves it out, and the words after it would be taken for others."""
    save_file({"clip_l": torch.randn(2, 1024)}, tmp_path / "other.safetensors")
    text = "a embedding:other cat"
    with pytest.raises(ValueError, match=f"SteerPromptEdit: an embedding in '{text}' is 1024 wide, and the text"):
        SteerPromptEdit.execute(clip, "a dog cat", text, "auto", "")


def test_one_token_to_four_and_three_to_one(sd1):
    cat, axolotl, capybara = (
        prompt(sd1, f"a photo of a {animal} on a mat") for animal in ("cat", "axolotl", "capybara")
    )
    (at,) = cat.positions("cat")
    assert axolotl.positions("axolotl") == [5, 6, 7, 8] and capybara.positions("capybara") == [5, 6, 7]
    matrix, _ = mapper(cat, axolotl, "auto")
    assert matrix[at, 5:9].tolist() == [0.25] * 4 and matrix[at].sum() == 1.0
    assert (
        matrix[cat.positions("on"), axolotl.positions("on")]
        == matrix[cat.positions("mat"), axolotl.positions("mat")]
        == 1
    )
    matrix, _ = mapper(capybara, cat, "auto")
    assert matrix[5:8, at].tolist() == [1.0] * 3 and matrix[5:8].sum() == 3.0
    torch.testing.assert_close(matrix.sum(1), torch.ones(77))


def test_two_swaps_with_words_of_several_tokens(sd1):
    source = prompt(sd1, "a cat beside a schnauzer, sunny")
    target = prompt(sd1, "a capybara beside a dog, rainy")
    matrix, kept = mapper(source, target, "auto")
    assert kept.all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(77))
    for ours, theirs in zip(source.words, target.words, strict=True):
        block = matrix[list(ours.positions)][:, list(theirs.positions)]
        torch.testing.assert_close(block.sum(1), torch.ones(len(ours.positions)))


def test_refining_a_long_prompt(sd1):
    source = prompt(sd1, "a cat, " * 24 + "the end")
    target = prompt(sd1, "one photo of an axolotl, " + "a cat, " * 24 + "the end")
    assert (source.length, target.length) == (77, 154)
    matrix, kept = mapper(source, target, "auto")
    for word in ("a cat", "the end"):
        ours, theirs = source.positions(word), target.positions(word)
        assert torch.equal(matrix[ours][:, theirs], torch.eye(len(ours))) and kept[theirs].all()
    assert not kept[target.positions("photo of an axolotl")].any() and not kept[77] and kept[0]


def test_equalizer_on_the_hosts_words(sd1):
    of = prompt(sd1, "a fluffy (axolotl:1.2), and an old T-shirt")
    values = word_values(of, "fluffy: 2; axolotl: -1, T-shirt: 0.5")
    assert values[of.positions("fluffy")].tolist() == [2.0] and values[of.positions("axolotl")].tolist() == [-1.0] * 4
    assert values[of.positions("t-shirt")].tolist() == [0.5] * 3 and values.ne(1).sum() == 8
