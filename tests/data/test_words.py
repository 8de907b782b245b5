"""Words in any script: what belongs to one, where scripts without blanks are split, where a word may be cut."""

import unicodedata

import pytest

from idgenrec_jax.data.words import WordSplitter, find_words, has_word, is_short_word, shortened, word_characters

CHINESE = [
    "无线耳机", "蓝牙鼠标", "无线鼠标黑色", "蓝牙耳机白色", "蓝牙无线耳机充电盒", "机械键盘", "无线键盘鼠标套装",
    "手机充电器快充", "iPhone手机壳", "笔记本支架", "快充充电器头", "笔记本包",
]  # fmt: skip
THAI = ["หูฟังไร้สายบลูทูธ", "หูฟังบลูทูธสีดำ", "เมาส์ไร้สายสีดำ", "ลำโพงบลูทูธไร้สาย", "สีดำหูฟัง"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't re-use_it 4x", ["don", "t", "re", "use_it", "4x"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("மொபைல் போன்", ["மொபைல்", "போன்"]),
        ("กีตาร์ ไฟฟ้า", ["กีตาร์", "ไฟฟ้า"]),
        ("كِتابٌ جديد", ["كِتابٌ", "جديد"]),
        ("Poke\u0301mon Cafe\u0301", ["Pok\u00e9mon", "Caf\u00e9"]),
        # A non-joiner inside a Persian word, and a stray one behind it.
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u200c.", ["\u0645\u06cc\u200c\u062e\u0648\u0627"]),
        # Malayalam ends this word with a joiner.
        ("\u0d05\u0d35\u0d28\u0d4d\u200d x", ["\u0d05\u0d35\u0d28\u0d4d\u200d", "x"]),
        ("Wasch\u00adbar", ["Waschbar"]),
        # A soft hyphen between a letter and its accent, and between the parts of a syllable.
        ("e\u00ad\u0301 \u1100\u00ad\u1161", ["\u00e9", "\uac00"]),
        ("\u845b\U000e0100\u57ce", ["\u845b\U000e0100\u57ce"]),
        ("\u2764\ufe0f red 1\ufe0f\u20e3 \U0001f469\u200d\U0001f52c", ["red", "1"]),
        ("\u0301x \u200d", ["x"]),
        ("无线 耳机。", ["无线", "耳机"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert find_words(text) == words
    assert find_words(" ".join(words)) == words, "an ID is cleaned again when it is read"
    # Composed and decomposed text give the same words.
    assert find_words(unicodedata.normalize("NFD", text)) == [unicodedata.normalize("NFC", word) for word in words]
    assert has_word(text) == bool(words)


def test_the_characters_of_words():
    assert word_characters(["a-b", "की!", "\u2764\ufe0f"]) == {"a", "b", "क", "ी"}


@pytest.mark.parametrize(
    ("run", "pieces"),
    [
        ("无线耳机", ["无线", "耳机"]),
        ("蓝牙无线耳机充电盒", ["蓝牙", "无线", "耳机", "充电", "盒"]),
        ("手机充电器快充", ["手机", "充电器", "快充"]),
        ("笔记本支架", ["笔记本", "支架"]),
        ("iPhone手机壳", ["iPhone", "手机", "壳"]),
        # Nothing recurs: as long as most words are.
        ("东西南北", ["东西", "南北"]),
        ("headphones", ["headphones"]),
    ],
)
def test_chinese_is_split_by_what_recurs(run, pieces):
    assert WordSplitter(CHINESE).split(run) == pieces


def test_other_scripts_without_blanks():
    thai = WordSplitter(THAI)
    assert [thai.split(text) for text in THAI[:3]] == [
        ["หูฟัง", "ไร้สาย", "บลูทูธ"],
        ["หูฟัง", "บลูทูธ", "สีดำ"],
        ["เมาส์", "ไร้สาย", "สีดำ"],
    ]
    japanese = WordSplitter(["ワイヤレスイヤホンの充電ケース", "充電ケース"])
    assert japanese.split("ワイヤレスイヤホンの充電ケース") == ["ワイヤレスイヤホン", "の", "充電", "ケース"]


@pytest.mark.parametrize(
    "text",
    ["ខ្មែរសៀវភៅថ្មីៗសម្រាប់កុមារ", "မြန်မာစာအုပ်အသစ်များ", "ຫູຟັງໄຮ້ສາຍສີດຳໃໝ່ຫຼາຍ", "ノ" * 40, "หูฟังไร้สาย" * 5],
)
@pytest.mark.parametrize("seen", [True, False])
def test_long_runs_are_split_between_letters(text, seen):
    pieces = WordSplitter([text] * 3 if seen else []).split(text)
    assert "".join(pieces) == text
    assert len(pieces) > 1 and max(map(len, pieces)) <= 30
    assert not any(unicodedata.category(piece[0]) in ("Mn", "Mc") for piece in pieces)


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("葛\U000e0100飾区", ["葛\U000e0100", "飾区"]),
        ("A\u3099\u0e33", ["A\u3099", "\u0e33"]),
        ("x\u0e49漢", ["x\u0e49", "漢"]),
    ],
)
def test_marks_of_other_scripts_stay_with_their_letter(word, pieces):
    assert WordSplitter([]).split(word) == pieces


def test_single_characters_that_are_words():
    assert [word for word in ("书", "책", "の", "ก", "a", "书本") if is_short_word(word)] == ["书", "책"]


@pytest.mark.parametrize(
    ("word", "length", "cut"),
    [
        ("pencil", 3, "pen"),
        ("pencil", 9, "pencil"),
        # The vowel sign and the nukta stay with their letter, or go with it.
        ("किताब", 1, ""),
        ("किताब", 2, "कि"),
        ("किताब", 4, "किता"),
        ("e\u0301\u0302x", 2, ""),
    ],
)
def test_a_word_is_not_cut_inside_a_letter(word, length, cut):
    assert shortened(word, length) == cut
