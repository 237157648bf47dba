import itertools
import random
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steer.attention.alignment import mapper, word_changes
from steer.attention.tokens import (
    END,
    START,
    Word,
    embedding_pieces,
    mentioned,
    prompt_of,
)
from steer.attention.word_values import word_values, word_windows


def made(*chunks, length=10, text="a prompt"):
    """A prompt from words in pieces, `a ax|o|lotl`; a last `|` leaves a word open.

    `*` is an embedding vector without a name, `<toy:3>` an embedding of three.
    """
    return prompt_of(text, [chunk_of(words.split(), length) for words in chunks])


def chunk_of(words, length, padding=END):
    pieces = [START]
    for word in words:
        if word == "*":
            pieces.append(None)
        elif word.startswith("<"):
            name, vectors = word[1:-1].rsplit(":", 1)
            pieces += embedding_pieces(name, int(vectors))
        elif word.endswith("|"):
            pieces += word[:-1].split("|")
        else:
            pieces += (word + "</w>").split("|")
    return [*pieces, END] + [padding] * (length - len(pieces) - 1)


def matrix_of(size, entries):
    """A matrix from {(row, column): value}."""
    matrix = torch.zeros(size)
    for place, value in entries.items():
        matrix[place] = value
    return matrix


def texts(prompt):
    return [word.text for word in prompt.words]


def check(source, target, mapping, entries, dropped=()):
    """The mapper is these entries, and all but the dropped target tokens are kept."""
    matrix, kept = mapper(source, target, mapping)
    assert matrix.dtype == kept.dtype == torch.float32
    torch.testing.assert_close(matrix, matrix_of((source.length, target.length), entries))
    assert kept.tolist() == [float(position not in dropped) for position in range(target.length)]


def diagonal(*positions):
    return {(position, position): 1.0 for position in positions}


# words


def test_pieces_make_words():
    prompt = made("a ax|o|lotl , it 's", length=10)
    assert prompt.words == (
        Word("a", (1,)), Word("axolotl", (2, 3, 4)), Word(",", (5,)), Word("it", (6,)), Word("'s", (7,))
    )  # fmt: skip
    assert prompt.length == 10
    assert [token.special for token in prompt.tokens] == [True] + [False] * 7 + [True] * 2


def test_padding_that_spells_a_sign_is_no_word():
    prompt = prompt_of("hi!", [chunk_of(["hi", "!"], 8, padding="!")])
    assert texts(prompt) == ["hi", "!"] and prompt.positions("hi") == [1]
    assert [token.special for token in prompt.tokens] == [True, False, False] + [True] * 5


def test_a_word_split_at_the_edge_of_a_chunk_is_one():
    prompt = made("a b c ax|o|", "lot|l d", length=7)
    assert prompt.words[3] == Word("axolotl", (4, 5, 8, 9)) and prompt.positions("axolotl") == [4, 5, 8, 9]
    assert prompt.positions("d") == [10]


def test_a_run_of_embedding_vectors_is_a_word():
    prompt = made("a * * cat *", length=10)
    assert texts(prompt) == ["a", "embedding", "cat", "embedding"]
    assert prompt.positions("embedding") == [2, 3, 5]
    assert [prompt.tokens[p].piece for p in (2, 3)] == ["", ""]


def test_embedding_vectors_end_an_unfinished_word_at_the_edge():
    assert texts(made("a b c d|", "* e", length=6)) == ["a", "b", "c", "d", "embedding", "e"]


def test_embeddings_with_names_are_told_apart():
    prompt = made("a <toy:3> <my-style_v1.2:1> <toy:2> cat", length=12)
    assert texts(prompt) == ["a", "embedding:toy", "embedding:my-style_v1.2", "embedding:toy", "cat"]
    assert prompt.positions("embedding:toy") == [2, 3, 4, 6, 7] and prompt.positions("embedding:my-style_v1.2") == [5]
    assert prompt.positions("a embedding:toy embedding:my-style_v1.2") == [1, 2, 3, 4, 5]
    assert prompt.positions("embedding") == [2, 3, 4, 5, 6, 7]  # all of them, as before they had names
    assert prompt.positions("embedding cat") == [6, 7, 8]
    for phrase in ("toy", "embedding:my", "embedding:style_v1.2", "embedding:toy embedding:toy"):
        with pytest.raises(ValueError, match="its words are: a, embedding:toy, embedding:my-style_v1.2, cat"):
            prompt.positions(phrase)


def test_an_embedding_split_at_the_edge_of_a_chunk_is_one():
    one, two = (prompt_of("a prompt", [[START, *pieces, END]]) for pieces in (["a</w>"], embedding_pieces("toy", 4)))
    first, second = two.tokens[1:3], two.tokens[3:5]
    chunks = [[START, "a</w>", *(t.piece for t in first), END], [START, *(t.piece for t in second), "b</w>", END]]
    prompt = prompt_of("a prompt", chunks)
    assert texts(one) == ["a"] and texts(prompt) == ["a", "embedding:toy", "b"]
    assert prompt.positions("embedding:toy") == [2, 3, 6, 7]


@pytest.mark.parametrize(
    "typed",
    ["embedding:toy", "Embedding:Toy", "embedding:toy,", " embedding:toy ", "(embedding:toy:1.2)", "(embedding:toy)",
     "((embedding:toy:0.5))", "(a:1.1) embedding:toy"],
)  # fmt: skip
def test_an_embedding_is_found_however_it_is_typed(typed):
    prompt = made("a <toy:2> <other:1>", length=8)
    assert prompt.positions(typed) == ([1, 2, 3] if typed.startswith("(a") else [2, 3])


def test_numbers_and_windows_of_embeddings():
    prompt = made("a <toy:2> <style.v2:1> cat", length=8)
    values = word_values(prompt, "embedding:toy: 2, (embedding:style.v2:1.3): -1; cat:0.5")
    assert values.tolist() == [1, 1, 2, 2, -1, 0.5, 1, 1]
    assert word_windows(prompt, "embedding:toy:0.4, embedding:style.v2: 0.2-0.6") == {
        2: (0.0, 0.4), 3: (0.0, 0.4), 4: (0.2, 0.6)
    }  # fmt: skip
    with pytest.raises(ValueError, match="'toy' for 'embedding' is not a number"):
        word_values(prompt, "embedding:toy")


def test_embeddings_are_mapped_by_their_names():
    source, target = made("a <toy:2> <other:2> cat", length=10), made("a big <other:2> <toy:2> cat", length=10)
    matrix, kept = mapper(source, target, "refine")
    for name in ("toy", "other"):
        ours, theirs = (prompt.positions(f"embedding:{name}") for prompt in (source, target))
        assert torch.equal(matrix[ours][:, theirs], torch.eye(2)) and kept[theirs].all()
    matrix, kept = mapper(made("a <toy:2> cat"), made("a cute <other:2> cat"), "refine")
    assert kept[[1, 5]].all() and not kept[[2, 3, 4]].any()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a cat", []),
        ("embedding:toy", [("toy",)]),
        ("a embedding:toy, a embedding:sub/my-style.v2 cat", [("toy",), ("sub/my-style.v2",)]),
        ("(embedding:toy:1.2) ((embedding:toy)), (a embedding:b: 1.1)", [("toy:1.2", "toy"), ("toy",), ("b",)]),
        (r"embedding:a\(b\)", [(r"a\(b\)",)]),
        ("embedding:toy[x] embedding:toy<lora:x:1>", [("toy", "toy[x]"), ("toy", "toy<lora:x:1>", "toy<lora:x")]),
        ("embedding: toy", []),
    ],
)
def test_embeddings_mentioned_in_a_prompt(text, names):
    assert list(mentioned(text)) == names


def test_bytes_are_read_back_as_text():
    prompt = made("cafÃ© na|Ã¯|ve ç|Į|« ðŁĲ±", length=12)
    assert texts(prompt) == ["café", "naïve", "猫", "🐱"]
    assert prompt.positions("Café") == [1] and prompt.positions("cafe\N{COMBINING ACUTE ACCENT}") == [1]
    assert prompt.positions("NAÏVE") == [2, 3, 4] and prompt.positions("猫") == [5, 6, 7]
    assert prompt.positions("🐱!") == [8]


def test_scripts_without_spaces_are_found_however_they_are_split():
    for pieces in ("ç|Į|« ç|Į|«", "ç|Į|«|ç|Į|«"):
        assert made(pieces).positions("猫猫") == [1, 2, 3, 4, 5, 6]


# phrases


@pytest.mark.parametrize("phrase", ["cat", "Cat", "cat,", " cat ", '"cat".', "(cat:1.2)", "((cat))", "[cat:-0.5)"])
def test_a_word_is_found_however_it_is_typed(phrase):
    assert made("a cat , a cat", length=10).positions(phrase) == [2, 5]


@pytest.mark.parametrize(
    "phrase, positions",
    [
        ("it's", [1, 2]),
        ("T-Shirt", [4, 5, 6]),
        ("t - shirt", [4, 5, 6]),
        ("red  t-shirt,", [3, 4, 5, 6]),
        ("(red:1.2) t-shirt", [3, 4, 5, 6]),
        ("3d", [7, 8]),
        ("at", [9]),
        ("o'reilly", [10, 11, 12]),
        ("'sun'", [13, 14, 15]),
        ("it", [1]),
        ("cat (animal)", [16, 17, 18, 19]),
        (r"cat \(animal\)", [16, 17, 18]),
    ],
)
def test_phrases_of_several_words(phrase, positions):
    """ "at" is not "a t", and an apostrophe splits as the tokenizer splits."""
    prompt = made("it 's red t - shirt 3 d at o 're illy 's un ' cat ( animal ) a t", length=30)
    assert prompt.positions(phrase) == positions


def test_punctuation_inside_a_phrase_counts():
    prompt = made("red , cat red cat", length=10)
    assert prompt.positions("red cat") == [4, 5] and prompt.positions("red, cat") == [1, 2, 3]


def test_occurrences_that_overlap_are_counted_once():
    assert made("ha ha ha", length=10).positions("ha ha") == [1, 2, 3]


def test_no_part_of_a_word_is_found():
    prompt = made("cats car|pet car pets", length=10)
    for phrase in ("cat", "pet", "at", "car pet", "carpets"):
        with pytest.raises(ValueError, match="is not in"):
            prompt.positions(phrase)


def test_a_missing_word_is_an_error_that_lists_the_words():
    prompt = made("a ax|o|lotl , a caf|Ã©", length=10, text="an (Axolotl:1.2), a café")
    with pytest.raises(ValueError) as error:
        prompt.positions("dog")
    assert str(error.value) == (
        "'dog' is not in the prompt 'an (Axolotl:1.2), a café'; its words are: a, axolotl, café"
    )
    for phrase in ("", "  ", ",", "()", "(:1.2)"):
        with pytest.raises(ValueError, match="names no word of the prompt 'an .*: a, axolotl, café"):
            prompt.positions(phrase)
    with pytest.raises(ValueError, match="words are: none"):
        made("").positions("cat")


# replace


def test_replacing_one_token_by_one():
    source, target = made("a cat sits", length=8), made("a dog sits", length=8)
    check(source, target, "replace", diagonal(*range(8)))


def test_replacing_three_tokens_by_one():
    source, target = made("an ax|o|lotl sits", length=8), made("a cat sits", length=8)
    entries = diagonal(0, 1, 7) | {(2, 2): 1.0, (3, 2): 1.0, (4, 2): 1.0, (5, 3): 1.0, (6, 4): 1.0}
    check(source, target, "replace", entries)  # target padding 5 and 6 has no source: columns of 0


def test_replacing_one_token_by_four():
    source, target = made("a cat sits", length=10), made("an ax|o|lot|l sits", length=10)
    spread = {(2, column): 0.25 for column in (2, 3, 4, 5)}
    padding = {(row, column): 0.5 for row in (5, 6, 7) for column in (8, 9)}
    check(source, target, "replace", diagonal(0, 1, 8, 9) | spread | {(3, 6): 1.0, (4, 7): 1.0} | padding)


def test_source_padding_goes_to_the_end_where_the_target_has_none():
    source, target = made("a cat sits", length=8), made("an ax|o|lot|l sits", length=8)
    spread = {(2, column): 0.25 for column in (2, 3, 4, 5)}
    rest = {(row, 7): 1.0 for row in (4, 5, 6, 7)}
    check(source, target, "replace", diagonal(0, 1) | spread | {(3, 6): 1.0} | rest)


def test_replacing_three_tokens_by_two():
    source, target = made("sch|nau|zer", length=6), made("cor|gi", length=6)
    spread = {(row, column): 0.5 for row in (1, 2, 3) for column in (1, 2)}
    check(source, target, "replace", diagonal(0, 5) | spread | {(4, 3): 1.0})


def test_two_swaps():
    source, target = made("a cat and a sch|nau|zer here", length=10), made("a cap|y and a dog here", length=10)
    # source: a cat 2, and a 3 4, schnauzer 5..7, here 8, end 9; target: capy 2 3, and a 4 5, dog 6, here 7, end 8
    entries = {(2, 2): 0.5, (2, 3): 0.5, (3, 4): 1.0, (4, 5): 1.0} | {(row, 6): 1.0 for row in (5, 6, 7)}
    check(source, target, "replace", diagonal(0, 1) | entries | {(8, 7): 1.0, (9, 8): 1.0})


def test_replacing_an_embedding():
    check(made("a * * sits", length=8), made("a cat sits", length=8), "replace",
          diagonal(0, 1, 6, 7) | {(2, 2): 1.0, (3, 2): 1.0, (4, 3): 1.0, (5, 4): 1.0})  # fmt: skip


def test_punctuation_is_a_word_to_replace():
    with pytest.raises(ValueError, match="'a prompt' has 3, 'the other' has 4; use refine"):
        mapper(made("a cat sits"), made("a cat , sits", text="the other"), "replace")
    check(made("a cat . sits"), made("a dog , sits"), "replace", diagonal(*range(10)))


def test_chunks_that_the_other_prompt_does_not_have_go_to_the_last_ones_padding():
    one, two = made("a b ax|o|l", length=7), made("a b", "cat", length=7)
    # one: start 0, a b axol 1..5, end 6. two: start 0, a b 1 2, end 3, padding 4..6; start 7, cat 8, end 9
    words = diagonal(0, 1, 2) | {(3, 8): 1.0, (4, 8): 1.0, (5, 8): 1.0}
    check(one, two, "replace", words | {(6, 3): 1.0})
    words = diagonal(0, 1, 2) | {(8, 3): 1 / 3, (8, 4): 1 / 3, (8, 5): 1 / 3}
    rest = {(row, 6): 1.0 for row in (3, 4, 5, 6, 7, 9, 10, 11, 12, 13)}
    check(two, one, "replace", words | rest)


def test_specials_of_two_chunks_go_to_their_own():
    source, target = made("a b c", "cat sits", length=6), made("a b c", "ax|o sits", length=6)
    words = diagonal(0, 1, 2, 3, 4, 5, 6) | {(7, 7): 0.5, (7, 8): 0.5, (8, 9): 1.0, (9, 10): 1.0, (10, 11): 1.0}
    check(source, target, "replace", words | {(11, 11): 1.0})


# refine


def test_an_added_word_keeps_its_own_attention():
    source, target = made("a cat sits", length=8), made("a fluf|fy cat sits", length=8)
    # start a cat sits end padding 5..7; start a fluf fy cat sits end 6, padding 7
    check(source, target, "refine", diagonal(0, 1, 7) | {(2, 4): 1.0, (3, 5): 1.0, (4, 6): 1.0}, dropped=(2, 3))


def test_a_removed_word_is_gone_and_padding_does_not_read_words():
    source, target = made("a big cat sits", length=8), made("a cat", length=8)
    # padding 4 and 5 of the target are a word and the end in the source
    check(source, target, "refine", diagonal(0, 1, 6, 7) | {(3, 2): 1.0, (5, 3): 1.0}, dropped=(4, 5))


def test_a_mismatch_is_no_match():
    source, target = made("a cat sits", length=7), made("a dog sits", length=7)
    check(source, target, "refine", diagonal(0, 1, 3, 4, 5, 6), dropped=(2,))


def test_a_moved_word_is_matched():
    source, target = made("red cat and sch|nau", length=8), made("sch|nau and cat red", length=8)
    # the longest common subsequence from the left: `sch nau`; the others are matched after it, word by word
    entries = diagonal(0, 6, 7) | {(4, 1): 1.0, (5, 2): 1.0, (3, 3): 1.0, (2, 4): 1.0, (1, 5): 1.0}
    check(source, target, "refine", entries)


def test_moved_words_are_matched_once_and_in_order():
    source, target = made("x y z the the", length=8), made("the the the x y z", length=8)
    # x y z is the common subsequence; two of three `the` are left to match
    entries = diagonal(0) | {(4, 1): 1.0, (5, 2): 1.0, (1, 4): 1.0, (2, 5): 1.0, (3, 6): 1.0, (6, 7): 1.0}
    check(source, target, "refine", entries, dropped=(3,))


def test_ties_keep_the_first_of_repeated_words():
    check(made("cat", length=5), made("cat cat", length=5), "refine", diagonal(0, 1, 4) | {(2, 3): 1.0}, dropped=(2,))
    check(made("cat cat", length=5), made("cat", length=5), "refine", diagonal(0, 1, 4) | {(3, 2): 1.0}, dropped=(3,))


def test_added_words_that_reach_a_second_chunk():
    source, target = made("a b c", length=6), made("a b big", "big c", length=6)
    # source: start 0, a b c 1..3, end 4, padding 5. target: start a b big end 4 padding 5, start 6, big 7, c 8, end 9
    check(source, target, "refine", diagonal(0, 1, 2, 4, 5) | {(3, 8): 1.0}, dropped=(3, 6, 7, 9, 10, 11))


def test_alignment_is_as_long_as_the_longest_common_subsequence():
    @cache
    def longest(x, y):
        if not x or not y:
            return 0
        if x[0] == y[0]:
            return 1 + longest(x[1:], y[1:])
        return max(longest(x[1:], y), longest(x, y[1:]))

    draw = random.Random(3)
    for _ in range(50):
        x, y = (tuple(draw.choices("abcd", k=draw.randrange(8))) for _ in range(2))
        matrix, _ = mapper(made(" ".join(x), length=10), made(" ".join(y), length=10), "refine")
        words = matrix[1 : len(x) + 1, 1 : len(y) + 1]
        moved = sum(min(x.count(word), y.count(word)) for word in "abcd")
        assert words.sum() == moved >= longest(x, y)  # what is not aligned is matched after
        ordered = [(int(i), int(j)) for i, j in words.nonzero()]
        increasing = max(
            (n for n in range(len(ordered) + 1) for part in itertools.combinations(ordered, n) if rising(part)),
            default=0,
        )
        assert increasing >= longest(x, y)


def rising(pairs):
    return all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(pairs))


# both


PROMPTS = ["a cat sits", "a big ax|o|lotl , sits", "* * cat", "the sch|nau|zer and the cat", "", "a b c d e f g"]


@pytest.mark.parametrize("mapping", ["auto", "replace", "refine"])
def test_the_same_prompt_is_the_identity(mapping):
    for prompt in [*map(made, PROMPTS), made("a b c ax|o|", "lot|l d d", length=7)]:
        matrix, kept = mapper(prompt, prompt, mapping)
        assert torch.equal(matrix, torch.eye(prompt.length)) and kept.all()


def test_replaced_attention_sums_to_one_and_refined_columns_are_one_source_token():
    for source, target in itertools.product(map(made, PROMPTS), repeat=2):
        matrix, kept = mapper(source, target, "auto")
        if len(source.words) == len(target.words):
            torch.testing.assert_close(matrix.sum(1), torch.ones(source.length))
            assert kept.all()
        else:
            assert set(matrix.unique().tolist()) <= {0.0, 1.0} and torch.equal(matrix.sum(0), kept)
            assert matrix.sum(1).max() == 1.0 and not kept.all()


def test_auto_replaces_where_the_numbers_of_words_are_equal():
    cat, dog, big = made("a cat sits"), made("a dog sits"), made("a big dog sits")
    for pair, mapping in (((cat, dog), "replace"), ((cat, big), "refine")):
        for auto, named in zip(mapper(*pair, "auto"), mapper(*pair, mapping), strict=True):
            assert torch.equal(auto, named)
    with pytest.raises(ValueError, match="'swap'; it has to be one of auto, replace, refine"):
        mapper(cat, dog, "swap")


# what is told of it


@pytest.mark.parametrize(
    "source, target, mapping, changed, kept",
    [
        ("a red heart", "a blue heart", "auto", "red > blue", "a, heart"),
        ("a red heart on a white background", "a big blue heart on white", "auto",
         "+ big, + blue, - red, - a, - background", "a, heart, on, white"),
        ("a red heart", "a blue heart", "refine", "+ blue, - red", "a, heart"),
        ("a cat", "a cat", "auto", "", "a, cat"),
        ("a fluf|fy cat", "a dog cat", "replace", "fluffy > dog", "a, cat"),
        ("", "", "auto", "", ""),
        ("", "a cat", "auto", "+ a, + cat", ""),
    ],
)  # fmt: skip
def test_word_changes(source, target, mapping, changed, kept):
    pair = made(source), made(target)
    assert word_changes(*pair, mapper(*pair, mapping)[0]) == (changed, kept)


DRAWN = st.lists(st.sampled_from(["a", "cat", "fluf|fy", "fluf|f", "*", "<toy:2>", "2"]), max_size=9).map(
    lambda words: made(" ".join(words), length=24)
)


@given(DRAWN, DRAWN, st.sampled_from(["auto", "refine"]))
def test_every_word_is_told_of(source, target, mapping):
    changed, kept = (
        text.split(", ") if text else [] for text in word_changes(source, target, mapper(source, target, mapping)[0])
    )
    new = [item.rpartition(" > ")[2].removeprefix("+ ") for item in changed if not item.startswith("- ")]
    assert sorted(new + kept) == sorted(texts(target))
    old = [item.rpartition(" > ")[0].removeprefix("- ").split() or [item[2:]] for item in changed if item[0] != "+"]
    assert set(itertools.chain(kept, *old)) == set(texts(source))


# values and windows


@pytest.mark.parametrize(
    "phrase, meant",
    [
        ("hart", "heart"),
        ("RED hart", "red heart"),
        ("(hart:1.2)", "heart"),
        ("sofa", None),
        ("a blue sofa", None),
        ("", None),
    ],
)
def test_the_nearest_word_is_suggested(phrase, meant):
    with pytest.raises(ValueError, match="its words are: a, red, heart") as caught:
        made("a red heart").positions(phrase)
    assert ("did you mean" in str(caught.value)) == bool(meant)
    assert not meant or f"'a prompt'; did you mean '{meant}'? its words are" in str(caught.value)


def test_word_values():
    prompt = made("a fluf|fy old cat , old t - shirt", length=14)
    expected = torch.ones(14)
    expected[[2, 3]], expected[[4, 7]], expected[[8, 9, 10]] = 2.0, -1.0, 0.5
    values = word_values(prompt, " fluffy:2, OLD : -1;t-shirt: 5e-1,\n")
    assert values.dtype == torch.float32 and torch.equal(values, expected)
    assert torch.equal(word_values(prompt, " "), torch.ones(14))
    assert word_values(prompt, "old cat: 3, (cat:1.2): 4")[[4, 5, 7]].tolist() == [3.0, 4.0, 1.0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat 2", "'cat 2' has no colon"),
        ("cat: 1,5", "'5' has no colon"),
        ("cat: two", "'two' for 'cat' is not a number"),
        ("cat:", "'' for 'cat' is not a number"),
        ("cat: nan", "'nan' for 'cat' is not a number"),
        ("cat: inf", "'inf' for 'cat' is not a number"),
        ("cat: 2, dog: 3", "'dog' is not in the prompt 'a prompt'; its words are: a, cat"),
        (": 2", "': 2' names no word"),
    ],
)
def test_bad_word_values(text, message):
    with pytest.raises(ValueError, match=message):
        word_values(made("a cat"), text)


def test_word_windows():
    prompt = made("a li|on in a jungle", length=10)
    windows = word_windows(prompt, "lion: 0.4, jungle: 0.2 - 0.6; a: 0-1")
    assert windows == {2: (0.0, 0.4), 3: (0.0, 0.4), 6: (0.2, 0.6), 1: (0.0, 1.0), 5: (0.0, 1.0)}
    assert word_windows(prompt, "") == {}


@pytest.mark.parametrize(
    "value", ["x", "", "1.5", "-0.5", "0.6-0.2", "0.5-0.5", "0", "0.2-", "0.1-0.2-0.3", "nan", "0-inf"]
)
def test_bad_word_windows(value):
    with pytest.raises(ValueError, match=f"'{value}' for 'cat' is not a window of the run"):
        word_windows(made("a cat"), f"cat: {value}")


def test_word_windows_of_a_missing_word():
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        word_windows(made("a cat"), "dog: 0.4")
    with pytest.raises(ValueError, match="no colon"):
        word_windows(made("a cat"), "cat 0.4")
