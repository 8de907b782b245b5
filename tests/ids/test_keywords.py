import random
import re
import string

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.ids.keywords import field_names, telling_words

PHONES = [
    "title: Vtech CS6114 Cordless Phone, White, 1 Handset; brand: VTech; categories: Electronics, Cordless Phones",
    "title: Panasonic KX12 Cordless Phones with Answering; brand: Panasonic; categories: Electronics, Cordless Phones",
    "title: Vtech Loud Cordless Phone; brand: VTech; categories: Electronics, Cordless Phones; description: For all.",
    "title: AT&amp;T Corded Phone, Loud; brand: AT&amp;T; categories: Electronics, Corded Phones",
]
PENS = [
    f"title: {brand} {kind} Pens, {color} Ink, 12-Pack; brand: {brand}; categories: Office Supplies, Gel Pens"
    for brand in ("Pilot", "Bic", "Zebra")
    for kind in ("Retractable", "Rolling")
    for color in ("Black", "Blue")
]
STAPLERS = [
    f"title: {brand} Desktop Stapler {number}; brand: {brand}; categories: Office Supplies, Staplers, Desktop Staplers"
    for number, brand in enumerate(["Swingline", "Bostitch", "Acme", "Swingline", "Bostitch", "Acme"], 300)
]
CATALOGUE = PHONES + PENS + STAPLERS


def test_targets_are_words_of_the_item_general_before_specific():
    targets = telling_words(CATALOGUE, max_words=3)
    assert targets[0].split()[:2] == ["phones", "cordless"]
    assert "vtech" in targets[0].split()
    assert targets[4].split()[0] == targets[9].split()[0] == "pens"
    assert {"pilot", "retractable"} & set(targets[4].split())
    for text, target in zip(CATALOGUE, targets, strict=True):
        own = {word.rstrip("s") for word in re.findall(r"\w+", text.lower())}
        assert {word.rstrip("s") for word in target.split()} <= own
        assert 1 <= len(target.split()) <= 3


def test_items_of_one_category_share_their_first_word():
    targets = telling_words(CATALOGUE)
    for group in (targets[:3], targets[4:16], targets[16:]):
        assert len({target.split()[0] for target in group}) == 1


def test_field_names_units_numbers_and_single_letters_are_left_out():
    words = {word for target in telling_words(CATALOGUE, max_words=20) for word in target.split()}
    assert not words & {"title", "brand", "categories", "description", "pack", "amp", "for", "all"}
    assert not any(word.isdigit() or len(word) < 2 for word in words)


def test_model_numbers_and_words_of_one_item_come_last():
    target = telling_words(CATALOGUE, max_words=4)[1]
    assert "kx12" not in target.split()
    everything = telling_words(CATALOGUE, max_words=20)[1].split()
    assert {"kx12", "answering", "panasonic"} <= set(everything)


def test_singular_and_plural_are_one_word_written_as_in_most_of_the_catalogue():
    targets = telling_words(["red pens", "blue pen", "green pens", "old pens pen"])
    assert all(target.split().count("pens") == 1 and "pen" not in target.split() for target in targets)


def test_the_budget_is_kept(tokenizer):
    targets = telling_words(CATALOGUE, max_words=5, max_tokens=9, tokenizer=tokenizer)
    lengths = [len(tokenizer.encode(target)) for target in targets]
    assert max(lengths) <= 9
    assert all("item" not in target for target in targets)
    wider = telling_words(CATALOGUE, max_words=5, max_tokens=25, tokenizer=tokenizer)
    assert sum(map(len, wider)) > sum(map(len, targets))


def test_a_word_has_the_case_of_the_catalogue_that_takes_the_fewest_tokens():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("\u2581", -3.0), ("\u2581VTech", -4.0), ("\u2581Loud", -4.0)]
    pieces += [(character, -5.0) for character in string.ascii_letters]
    backend = tokenizers.Tokenizer(models.Unigram(pieces))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    texts = ["title: loud VTech phone", "title: loud vtech phone", "title: vtech phone Loud", "title: loud phone"]
    targets = telling_words(texts, max_tokens=100, tokenizer=tokenizer)
    assert set(targets[0].split()) == {"Loud", "VTech", "phone"}
    assert set(telling_words(texts)[0].split()) == {"loud", "vtech", "phone"}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("", "item"),
        ("  ?! ", "item"),
        ("title: ; brand: ", "item"),
        ("title: the of; brand: ", "the of"),
        ("12 34", "12 34"),
        ("Wooden desk lamp", "wooden desk lamp"),
        ("<b>Steel</b> &quot;desk&quot;", "steel desk"),
        ("note: a lamp", "lamp"),
        ("\u674e\u767d \u8bd7\u96c6", "\u674e\u767d \u8bd7\u96c6"),
    ],
)
def test_single_texts(text, target):
    assert telling_words([text]) == [target]


def test_nothing_in_nothing_out():
    assert telling_words([]) == []


def test_colons_and_semicolons_inside_a_value_are_text():
    texts = [f"title: Lamp {index}; description: warm light; really: bright steel" for index in range(1)]
    texts += [
        f"title: Lamp {word}; description: steel"
        for word in ("oak", "elm", "ash", "fir", "yew", "teak", "pine", "beech", "birch", "maple", "cedar")
    ]
    assert {"really", "bright"} & set(telling_words(texts, max_words=9)[0].split())


def test_the_order_of_the_catalogue_and_repetition_change_nothing_of_an_item():
    order = list(range(len(CATALOGUE)))
    random.Random(3).shuffle(order)
    targets = telling_words(CATALOGUE)
    assert telling_words([CATALOGUE[index] for index in order]) == [targets[index] for index in order]


def test_titles_that_begin_like_a_field_are_titles():
    plain = [f"{color} pan {number}" for number in range(6) for color in ("red", "blue")]
    odd = ["Size: 12 inch pan", "Title: a novel", "Description: of the kitchen", "Note: blue notebook"]
    # "size" is a unit and the numbers are none of its words; "pan" was read all the same.
    expected = ["pan", "title novel", "description kitchen", "blue note notebook"]
    assert telling_words(plain + odd, max_words=20)[-4:] == expected
    assert field_names(plain + odd) == frozenset()


def test_field_names_are_those_that_texts_are_made_of():
    assert field_names(["title: Note: red; brand: Acme"] + ["title: pen; brand: Acme"] * 20) == {"title", "brand"}
    # One description among many is a field, because texts are made of fields.
    assert field_names(["title: pen"] * 20 + ["title: ink; description: blue"]) == {"title", "description"}
    assert field_names(["title: pen"] * 20 + ["title: ink; really: blue"]) == {"title"}
    assert field_names(["标题: 笔; 品牌: 英雄", "标题: 墨水; 品牌: 英雄"]) == {"标题", "品牌"}
    assert field_names(["red pen", "Title: pen"]) == frozenset()
    assert field_names(["title: pen; brand: Acme"]) == {"title", "brand"}


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "null", "N/A", "<NA>", "na", "NaT", "nil", "undefined"])
def test_missing_values_spelt_as_text_are_no_words(missing):
    texts = [
        f"title: Red pen; brand: {missing}; categories: {missing}",
        "title: Blue pen; brand: Acme; categories: Pens",
        f"title: {missing}; brand: Acme; categories: Pens",
        f"title: {missing}; brand: {missing}; categories: {missing}",
    ]
    targets = telling_words(texts, max_words=20)
    assert set(targets[0].split()) == {"red", "pen"}
    assert set(targets[2].split()) == {"acme", "pen"}
    assert targets[3] == "item"


def test_lists_of_missing_values_are_no_words():
    assert telling_words(["title: nan; categories: nan, null", "title: pen; categories: nan, Pens"])[0] == "item"


def test_words_in_other_scripts_are_whole():
    assert telling_words(["title: हिन्दी किताब", "title: Poke\u0301mon Cafe\u0301"]) == [
        "हिन्दी किताब",
        "pok\u00e9mon caf\u00e9",
    ]


def test_sentences_without_blanks_give_words_and_not_one_or_none():
    texts = [
        "title: 高品质无线蓝牙耳机适用于手机和笔记本电脑的降噪运动耳机长续航防水音乐商务通话; categories: 耳机",
        "title: 无线耳机黑色; categories: 耳机",
        "title: 蓝牙鼠标笔记本电脑; categories: 鼠标",
        "title: 无线鼠标黑色; categories: 鼠标",
        "title: 书; categories: 书",
    ]
    targets = [target.split() for target in telling_words(texts, max_words=4)]
    assert [target[0] for target in targets] == ["耳机", "耳机", "鼠标", "鼠标", "书"]
    assert {"无线", "黑色"} <= set(targets[1])
    assert all(len(word) <= 4 for target in targets for word in target)
    assert len(targets[0]) == 4


def test_words_that_the_tokenizer_cannot_write_are_left_out(tokenizer):
    texts = ["title: red pen \u8033\u673a", "title: blue lamp \u8033\u673a", "title: \u8033\u673a"]
    targets = telling_words(texts, tokenizer=tokenizer)
    assert [set(target.split()) for target in targets] == [{"red", "pen"}, {"blue", "lamp"}, {"item"}]
    assert not any(tokenizer.unknown_id in tokens for tokens in tokenizer.encode_batch(targets))
