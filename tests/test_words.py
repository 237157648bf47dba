"""Words of encoders other than CLIP, and of several at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steer.attention.alignment import chosen, mapper, word_changes
from steer.attention.spelling import BYTE_LEVEL, CLIP, SENTENCEPIECE, spelled_bytes, spelling_of
from steer.attention.tokens import END, START, Prompt, embedding_pieces, prompt_of
from steer.attention.word_values import word_values
from steer.attention.words import Stream, Token, Word

KINDS = {"<s>": "start", "</s>": "end", "<pad>": "padding"}


def stream(pieces, spelling=SENTENCEPIECE, name="t5xxl"):
    """A stream from pieces with spaces between them: `▁a ▁cat </s> <pad>`."""
    return Stream(name, tuple(Token(piece, KINDS.get(piece, "")) for piece in pieces.split(" ")), spelling)


def clip(words, length=10):
    pieces = [piece for word in words.split() for piece in (word + "</w>").split("|")]
    return prompt_of("", [[START, *pieces, END, *[END] * (length - len(pieces) - 2)]]).streams[0]


def made(*streams, text="a prompt"):
    return Prompt(text, streams)


def words(*streams):
    return {word.text: word.positions for word in made(*streams).words}


def byte_level(text: str) -> str:
    """Text as a byte-level vocabulary writes it."""
    table = {spelled_bytes(chr(code), BYTE_LEVEL): chr(code) for code in range(0x17F)}
    return "".join(table[bytes([byte])] for byte in text.encode())


# one encoder


def test_vocabularies_are_told_apart():
    assert spelling_of({"cat</w>", "the</w>", "Ġthe"}) == CLIP
    assert spelling_of({"▁the", "the"}) == SENTENCEPIECE and spelling_of({"Ġthe", "the"}) == BYTE_LEVEL
    assert spelling_of({"the", "##s", "▁"}) is None


def test_pieces_of_sentencepiece_make_words():
    assert words(stream("▁A ▁fluff y ▁cat , ▁ t - re x ! </s> <pad> <pad>")) == {
        "a": (0,), "fluffy": (1, 2), "cat": (3,), ",": (4,), "t": (6,), "-": (7,), "rex": (8, 9), "!": (10,)
    }  # fmt: skip


def test_pieces_of_bytes_make_words():
    assert words(stream("<s> A Ġfl uffy Ġcat , Ġ 3 d Ġit 's </s>", BYTE_LEVEL)) == {
        "a": (1,), "fluffy": (2, 3), "cat": (4,), ",": (5,), "3": (7,), "d": (8,), "it": (9,), "'s": (10,)
    }  # fmt: skip


def test_words_split_as_clips_do():
    """Contractions only where a word begins with one, digits one by one, signs in a run."""
    text = byte_level(" don't O'Reilly 'sun' co-op 24 wow!!! ok... ½ naïve 猫犬 hello_world")
    assert [word.text for word in made(stream(" ".join(text), BYTE_LEVEL)).words] == [
        "don", "'t", "o", "'re", "illy", "'s", "un", "'", "co", "-", "op", "2", "4", "wow", "!!!", "ok", "...", "½",
        "naïve", "猫犬", "hello", "_", "world",
    ]  # fmt: skip


def test_bytes_of_one_character_in_several_tokens():
    first, *rest = byte_level(" 猫")
    assert words(stream(" ".join(["a", first + rest[0], *rest[1:]]), BYTE_LEVEL)) == {"a": (0,), "猫": (1, 2, 3)}
    assert words(stream("▁a ▁ <0xE7> <0x8C> <0xAB>")) == {"a": (0,), "猫": (2, 3, 4)}
    assert words(stream("▁a ▁ <0xE7> <0x8C>")) == {"a": (0,), "\ufffd": (2, 3)}  # cut


def test_words_that_share_a_token_are_one():
    assert words(stream("t -re x Ġin Ġ1985", BYTE_LEVEL)) == {"t": (0,), "-rex": (1, 2), "in": (3,), "1985": (4,)}
    assert words(stream("▁a-b - c ▁d")) == {"a-b": (0,), "-": (1,), "c": (2,), "d": (3,)}


def test_signs_that_share_a_token_with_a_word_belong_to_it_or_not():
    prompt = made(stream('t -re x , Ġ"s un", Ġa', BYTE_LEVEL))
    assert prompt.positions("t-rex") == [0, 1, 2] and prompt.positions("rex") == prompt.positions("-rex") == [1, 2]
    assert prompt.positions("sun") == prompt.positions('"sun"') == [4, 5]
    for phrase in ("re", "x", "s", "un"):
        with pytest.raises(ValueError, match="is not in the prompt 'a prompt'"):
            prompt.positions(phrase)


def test_a_word_that_the_encoder_cannot_read_is_said():
    prompt = made(stream("▁a ▁na <unk> ve ▁cat ▁ <unk> , </s>"))
    assert [word.positions for word in prompt.words] == [(0,), (1, 2, 3), (4,), (6,), (7,)]
    for phrase in ("naïve", "猫", "dog"):
        with pytest.raises(ValueError) as caught:
            prompt.positions(phrase)
        assert "; its words are: a, cat; not to be named, since t5xxl cannot read all of their" in str(
            caught.value
        ).replace("; did you mean 'na\ufffdve'? its", "; its")
        assert str(caught.value).endswith("characters: na\ufffdve, \ufffd")


def test_embeddings_among_the_pieces():
    vectors = [Token(piece) for piece in embedding_pieces("toy", 2)]
    tokens = (Token("▁a"), *vectors, Token("▁cat"), Token(""), Token(""), Token("</s>", "end"))
    prompt = made(Stream("t5xxl", tokens, SENTENCEPIECE))
    assert [word.text for word in prompt.words] == ["a", "embedding:toy", "cat", "embedding"]
    assert prompt.positions("embedding:toy") == [1, 2] and prompt.positions("embedding") == [1, 2, 4, 5]


WORDS = st.lists(st.text("abcxyzäßλж猫", min_size=1, max_size=6), min_size=1, max_size=8)


@given(WORDS, st.data())
def test_however_words_are_cut_into_pieces(texts, data):
    """The same words, each where its own pieces are, in both kinds of vocabulary."""
    for spelling, space, write in ((BYTE_LEVEL, "Ġ", byte_level), (SENTENCEPIECE, "▁", str)):
        pieces, places = [], []
        for text in texts:
            written = write(text)
            cuts = sorted(data.draw(st.sets(st.integers(0, len(written) - 1)))) + [len(written)]
            parts = [written[start:end] for start, end in zip([0, *cuts], cuts, strict=False) if end > start]
            own = [space, *parts] if data.draw(st.booleans()) else [space + parts[0], *parts[1:]]
            places.append(tuple(range(len(pieces) + (own[0] == space), len(pieces) + len(own))))
            pieces += own
        prompt = made(stream(" ".join(pieces), spelling))
        assert prompt.words == tuple(Word(text.lower(), at) for text, at in zip(texts, places, strict=True))


# several


def test_words_of_two_streams_stand_in_both():
    prompt = made(clip("a fluf|fy cat , cat"), stream("▁A ▁fluffy ▁cat , ▁cat </s> <pad>"))
    assert prompt.words == (
        Word("a", (1, 10)), Word("fluffy", (2, 3, 11)), Word("cat", (4, 12)), Word(",", (5, 13)), Word("cat", (6, 14))
    )  # fmt: skip
    assert prompt.length == 17 and prompt.positions("cat") == [4, 6, 12, 14]
    assert prompt.positions("fluffy cat") == [2, 3, 4, 11, 12]
    assert [span for span in prompt.spans] == [range(10), range(10, 17)]
    assert (word_values(prompt, "cat: 2") == 2).nonzero().flatten().tolist() == [4, 6, 12, 14]


def test_words_that_share_a_token_in_one_stream_are_one_in_all():
    prompt = made(clip("in 1 9 8 5 a t - rex", 12), stream("▁in ▁1985 ▁a ▁ t -re x </s>"))
    assert [word.text for word in prompt.words] == ["in", "1985", "a", "t", "-rex"]
    assert prompt.positions("1985") == [2, 3, 4, 5, 13] and prompt.positions("rex") == [8, 9, 17, 18]


def test_a_word_that_one_of_them_cannot_read_has_the_others_name():
    prompt = made(clip("a na|Ã¯|ve ç|Į|« cat", 12), stream("▁a ▁na <unk> ve ▁ <unk> ▁cat </s>"))
    assert [word.text for word in prompt.words] == ["a", "naïve", "猫", "cat"]
    assert prompt.positions("naïve") == [2, 3, 4, 13, 14, 15] and prompt.positions("猫") == [5, 6, 7, 17]


def test_the_name_is_that_of_the_encoder_that_reads_it_whichever_comes_first():
    llama = stream(f"a Ġna{byte_level('ï')}ve Ġ {' '.join(byte_level('猫'))} Ġcat", BYTE_LEVEL, "llama")
    prompt = made(stream("▁a ▁na <unk> ve ▁ <unk> ▁cat </s>"), llama)
    assert [word.text for word in prompt.words] == ["a", "naïve", "猫", "cat"]
    assert prompt.positions("naïve") == [1, 2, 3, 9]


def test_words_that_t5_writes_in_another_way():
    """Its vocabulary takes ½ apart, and has no letters of full width."""
    prompt = made(clip("Â½ ï½ģï½Ĥ cat"), stream("▁1 ⁄ 2 ▁ab ▁cat </s>"))
    assert [word.positions for word in prompt.words] == [(1, 10, 11, 12), (2, 13), (3, 14)]
    assert [word.text for word in prompt.words] == ["½", "ａｂ", "cat"]


def test_a_stream_that_ends_early_and_one_without_tokens():
    prompt = made(
        stream("▁a ▁cat </s>"), stream("<s> a Ġcat Ġsits", BYTE_LEVEL, "llama"), Stream("", (Token("", "padding"),))
    )
    assert prompt.words == (Word("a", (0, 4)), Word("cat", (1, 5)), Word("sits", (6,)))


def test_a_word_that_is_cut_off_has_its_whole_name():
    prompt = made(stream("▁a ▁schnau </s>"), stream("<s> a Ġschnau zer Ġsits Ġhere", BYTE_LEVEL, "llama"))
    assert prompt.words == (Word("a", (0, 4)), Word("schnauzer", (1, 5, 6)), Word("sits", (7,)), Word("here", (8,)))


def test_the_same_stream_twice():
    llama = stream("<s> a Ġcat", BYTE_LEVEL, "llama")
    assert words(stream("▁a ▁cat </s>"), llama, llama) == {"a": (0, 4, 7), "cat": (1, 5, 8)}


# alignment


def check(source, target, mapping, entries, dropped=()):
    matrix, kept = mapper(source, target, mapping)
    expected = torch.zeros(source.length, target.length)
    for place, value in entries.items():
        expected[place] = value
    torch.testing.assert_close(matrix, expected)
    assert kept.tolist() == [float(position not in dropped) for position in range(target.length)]


def test_replacing_in_an_encoder_of_whole_texts():
    """A space of its own goes with its word, a template with the template, surplus padding evenly to the rest."""
    source = made(stream("<s> ▁a ▁ x y ▁sits </s> <pad> <pad> <pad>"))
    target = made(stream("<s> ▁a ▁ w o lf ▁sits </s> <pad> <pad>"))
    spread = {(row, column): 0.25 for row in (2, 3, 4) for column in (2, 3, 4, 5)}
    ends = {(5, 6): 1.0, (6, 7): 1.0, (8, 8): 1.0, (9, 9): 1.0, (7, 8): 0.5, (7, 9): 0.5}
    check(source, target, "replace", {(0, 0): 1.0, (1, 1): 1.0} | spread | ends)


def test_a_word_that_is_cut_in_another_way_elsewhere_is_kept():
    source, target = (
        made(stream(pieces, BYTE_LEVEL)) for pieces in ("Cap y bara Ġsits </s>", "a Ġcapy bara Ġsits </s>")
    )
    spread = {(row, column): 0.5 for row in (0, 1, 2) for column in (1, 2)}
    check(source, target, "refine", spread | {(3, 3): 1.0, (4, 4): 1.0}, dropped=(0,))
    assert word_changes(source, target, mapper(source, target, "auto")[0]) == ("+ a", "capybara, sits")


def test_streams_are_mapped_one_by_one():
    """Each block is that of the stream alone, and nothing is beside the blocks."""
    ours = clip("a red cat"), stream("▁a ▁red ▁ca t </s> <pad>")
    theirs = clip("a blue dog"), stream("▁a ▁blu e ▁dog </s> <pad>")
    for mapping in ("replace", "refine"):
        matrix, kept = mapper(made(*ours), made(*theirs), mapping)
        alone = [mapper(made(one), made(other), mapping) for one, other in zip(ours, theirs, strict=True)]
        assert torch.equal(matrix, torch.block_diag(*(block for block, _ in alone)))
        assert torch.equal(kept, torch.cat([part for _, part in alone]))


def test_padding_is_matched_by_its_place_in_its_own_stream():
    """Also where the streams before are of different lengths, as CLIP's of one chunk and of two."""
    t5 = stream("▁a ▁cat </s> <pad> <pad> <pad>")
    for mapping in ("replace", "refine"):
        matrix, kept = mapper(made(clip("a cat", 6), t5), made(clip("a cat", 9), t5), mapping)
        assert torch.equal(matrix[6:, 9:], torch.eye(6)) and kept[9:].all()


def test_replacing_loses_no_row_where_one_stream_lacks_a_word():
    """T5 of HiDream stops after 128 tokens; what it has no word for goes to its end."""
    source = made(stream("▁a ▁cat ▁sits </s>"), stream("<s> a Ġcat Ġsits", BYTE_LEVEL, "llama"))
    target = made(stream("▁a ▁axo lotl </s>"), stream("<s> a Ġaxolotl Ġsits", BYTE_LEVEL, "llama"))
    matrix, kept = mapper(source, target, "auto")
    assert chosen(source, target, "auto") == "replace" and matrix[2, 3] == 1.0
    torch.testing.assert_close(matrix.sum(1), torch.ones(8))


def test_words_are_counted_as_joined():
    """1985 is one word in T5, though four in CLIP."""
    year = made(clip("in 1 9 8 5", 8), stream("▁in ▁1985 </s>"))
    assert chosen(year, made(clip("in may", 8), stream("▁in ▁may </s>")), "auto") == "replace"
    with pytest.raises(ValueError, match="'a prompt' has 2, 'a prompt' has 3; use refine"):
        mapper(year, made(clip("in may .", 8), stream("▁in ▁may . </s>")), "replace")


@given(WORDS, WORDS)
def test_rows_of_a_replacement_sum_to_one_and_a_prompt_is_its_own_mapper(ours, theirs):
    pieces = [" ".join(f"▁{word[:2]} {word[2:]}".strip() for word in of) for of in (ours, theirs)]
    source, target = (made(clip("a", 6), stream(f"{of} </s> <pad>")) for of in pieces)
    for mapping in ("replace", "refine"):
        assert torch.equal(mapper(source, source, mapping)[0], torch.eye(source.length))
    if len(source.words) == len(target.words):
        torch.testing.assert_close(mapper(source, target, "replace")[0].sum(1), torch.ones(source.length))
