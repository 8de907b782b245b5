"""Warm-start targets: the most telling words of each item's own text, by TF-IDF over the catalogue.

A target reads as a description that goes from the general to the specific, such as "cordless vtech dect phone": the
kind of product leads, one word for all items of a category, so that similar items share prefixes and a generative
recommender can settle the kind before the product.
"""

import functools
import html
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import WordSplitter, find_words, is_missing, is_short_word

FIELD_WEIGHTS = {
    "title": 3.0, "name": 3.0, "brand": 1.0, "categories": 1.5, "category": 1.5, "genres": 1.5, "tags": 1.0,
    "description": 0.3,
}  # fmt: skip
"""What one occurrence of a word counts, by the field of the item's text that it stands in."""

_OTHER_WEIGHT = 0.5
_TITLE_FIELDS = frozenset({"title", "name"})
_CATEGORY_FIELDS = frozenset({"categories", "category", "genres"})
_LEVEL = re.compile(r"[,|>;]")
_DIGIT_PENALTY = 0.05
_SINGLE_ITEM_PENALTY = 0.15
_FIRST_TITLE_WORDS = 6
_MARKER = regex.compile(r"(?:^|;\s*)(\p{L}[\p{L}\p{M}_ ]{0,30}?):\s")
_TAG = re.compile(r"<[^<>]{1,200}>")
_STOP_WORD_TEXT = """
    a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further get had has have having he her here hers him his
    how i if in into is it its just ll me more most my na nan new nil no none nor not now null of off on once one only
    or other our out over own per re same she should so some such than that the their them then there these they this
    those through to too under unknown until up use used uses using ve very via was we well were what when where which
    while who whom why will with within without won would yes you your yours de du et la le les
    amp gt lt nbsp quot reg tm www http https com
    assorted case cm count ct each feet fl fluid foot ft gallon gram grams inch inches kg lb lbs liter mg milliliter ml
    mm ounce ounces oz pack packs pair pc pcs piece pieces pk pound pounds qty quantity set sets size sizes unit units
    yard yards
"""
_STOP_WORDS = frozenset(_STOP_WORD_TEXT.split())


@dataclass(frozen=True)
class _ItemWords:
    """The words of one item by their normal form.

    `weights`: weighted counts, in order of first appearance. `title`, `category`: the words of these fields. `leaf`:
    the words of the last and most special of the item's categories, in order; empty where it has none.
    """

    weights: dict[str, float]
    title: frozenset[str]
    category: frozenset[str]
    leaf: tuple[str, ...]


def telling_words(
    texts: Sequence[str], *, max_words: int = 5, max_tokens: int = 9, tokenizer: Tokenizer | None = None
) -> list[str]:
    """For each item's text at most `max_words` of its most telling words, joined by single spaces.

    A text is plain or made of fields, `title: ...; brand: ...; categories: ...; description: ...`, whose names are not
    words of the item (see `field_names`). Words are those of `data.words`; of scripts without blanks they are pieces
    that recur in the catalogue. A word's score is the sum of its occurrences weighted by field (FIELD_WEIGHTS) times a
    damped inverse document frequency. Items with a category always have the word of its kind. Stop words, units and
    single characters are left out; words with digits and words that only one item has are taken where little else is
    left. Singular and plural count as one word and are written as most of the catalogue writes them, in lower case.
    With a `tokenizer`, a target has at most `max_tokens` tokens, and a word has that case, of those in the catalogue,
    which takes the fewest: short IDs are quicker to learn and to decode. Targets need not be unique; a text without any
    word gives "item". The result is a pure function of the arguments.
    """
    names = field_names(texts)
    surfaces: Counter[tuple[str, str]] = Counter()
    splitter = WordSplitter(texts)
    items = [_read(text, names, surfaces, splitter) for text in texts]
    document_frequency = Counter(word for item in items for word in item.weights)
    rarity = {word: _rarity(word, count, len(texts)) for word, count in document_frequency.items()}
    written, lengths = _written_forms(surfaces, tokenizer)
    budget = max_tokens if tokenizer is not None else max_words
    kinds = _kinds(items)
    results = []
    for item in items:
        kind = kinds.get(item.leaf)
        scores = {word: weight * rarity[word] for word, weight in item.weights.items()}
        chosen: list[str] = []
        used = 0
        for word in sorted(scores, key=lambda word: (word != kind, -scores[word])):
            if word in lengths and len(chosen) < max_words and used + lengths[word] <= budget:
                chosen.append(word)
                used += lengths[word]
        results.append(" ".join(written[word] for word in _ordered(chosen, item, kind, document_frequency)) or "item")
    return results


def _kinds(items: list[_ItemWords]) -> dict[tuple[str, ...], str]:
    """For each leaf category the one of its words that is in most titles of its items, of equals the last."""
    in_titles: dict[tuple[str, ...], Counter[str]] = {}
    for item in items:
        if item.leaf:
            in_titles.setdefault(item.leaf, Counter()).update(item.title.intersection(item.leaf))
    return {leaf: max(reversed(leaf), key=lambda word: counts[word]) for leaf, counts in in_titles.items()}


def _ordered(chosen: list[str], item: _ItemWords, kind: str | None, document_frequency: Counter[str]) -> list[str]:
    """The chosen words, from the general to the specific.

    The kind leads, then other words of the item's categories, the more common first; the rest follows as the text has
    it, so that a brand of two words stays in one piece. Without categories the more common lead throughout.
    """
    position = {word: index for index, word in enumerate(item.weights)}

    def key(word: str) -> tuple[bool, bool, int, int]:
        general = word in item.category or not item.category
        return (word != kind, not general, -document_frequency[word] if general else 0, position[word])

    return sorted(chosen, key=key)


def _rarity(word: str, document_frequency: int, num_items: int) -> float:
    """The damped inverse document frequency of a word, smaller by far for model numbers and for words of one item.

    Below about a thousandth of the catalogue rarer is not better: such words are names that no other item can share.
    """
    floor = max(3.0, num_items / 1000)
    rarity = math.log((num_items + 1) / max(document_frequency, floor)) if num_items > floor else 1.0
    if any(character.isdigit() for character in word):
        rarity *= _DIGIT_PENALTY
    if document_frequency == 1 and num_items > 1:
        rarity *= _SINGLE_ITEM_PENALTY
    return max(rarity, 1e-3)


def field_names(texts: Sequence[str]) -> frozenset[str]:
    """Return the names, in lower case, that stand before the values of fields in the texts of a catalogue.

    A title may begin like a field ("Size: 12 inch"). So a name must stand before a colon, at the start or behind a
    semicolon, in a tenth of the texts, and in two if there are two. Where such a name begins texts, they are made of
    fields, and names of FIELD_WEIGHTS and names behind semicolons are taken at any number and at a tenth.
    """
    starts: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for text in texts:
        marks = list(_MARKER.finditer(text)) if ":" in text else []
        anywhere.update({mark.group(1).lower() for mark in marks})
        if marks and marks[0].start() == 0:
            starts[marks[0].group(1).lower()] += 1
    enough = len(texts) / 10
    names = {name for name, count in anywhere.items() if count >= max(enough, min(2, len(texts)))}
    if not names.isdisjoint(starts):
        names |= {
            name for name, count in anywhere.items() if name in FIELD_WEIGHTS or count - starts[name] >= max(enough, 1)
        }
    return frozenset(names)


def fields_of(text: str, names: frozenset[str]) -> list[tuple[str, str]]:
    """Return (name, value) of the fields of one text, at least one; what stands before the first is its title.

    A value that only says that it is missing ("nan") is left out.
    """
    marks = [match for match in _MARKER.finditer(text) if match.group(1).lower() in names]
    ends = [mark.start() for mark in marks] + [len(text)]
    fields = [("title", text[: ends[0]])]
    fields += [(mark.group(1).lower(), text[mark.end() : end]) for mark, end in zip(marks, ends[1:], strict=True)]
    kept = [(name, value) for name, value in fields if value.strip() and not is_missing(value)]
    return kept or [("title", "")]


def _read(
    text: str, names: frozenset[str], surfaces: Counter[tuple[str, str]], splitter: WordSplitter
) -> _ItemWords:
    """The weighted words of one text; adds the forms in which they are written to `surfaces`."""
    fields = fields_of(text, names)
    weights: dict[str, float] = {}
    title: set[str] = set()
    category: set[str] = set()
    leaf: tuple[str, ...] = ()
    for name, value in fields:
        value = _TAG.sub(" ", html.unescape(value))
        weight = FIELD_WEIGHTS.get(name, _OTHER_WEIGHT)
        if name in _CATEGORY_FIELDS:
            levels = [_words(level, splitter) for level in _LEVEL.split(value)]
            for level in levels:
                category.update(_add(level, weights, surfaces, weight if level is levels[-1] else weight / 2))
            leaf = next((tuple(map(_normal_form, level)) for level in reversed(levels) if level), ())
            continue
        words = _words(value, splitter)
        if name in _TITLE_FIELDS:
            title.update(_add(words[:_FIRST_TITLE_WORDS], weights, surfaces, weight))
            title.update(_add(words[_FIRST_TITLE_WORDS:], weights, surfaces, weight / 2))
        else:
            _add(words, weights, surfaces, weight)
    if not weights:
        words = [word for _, value in fields for word in find_words(value) if not is_missing(word)]
        _add(words[:3], weights, surfaces, 1.0)
    return _ItemWords(weights, frozenset(title), frozenset(category), leaf)


def _words(text: str, splitter: WordSplitter) -> list[str]:
    """The words of a text that may be in a target, as they are written."""
    words = find_words(text)
    if not text.isascii():
        words = [piece for word in words for piece in splitter.split(word)]
    return [
        word
        for word in words
        if (2 <= len(word) <= 30 or is_short_word(word)) and word.lower() not in _STOP_WORDS and not word.isdigit()
    ]


def _add(words: list[str], weights: dict[str, float], surfaces: Counter[tuple[str, str]], weight: float) -> list[str]:
    """Adds `weight` to each of the words in `weights`, counts how they are written, and returns their normal forms."""
    normal = [_normal_form(word) for word in words]
    surfaces.update(zip(normal, words, strict=True))
    for word in normal:
        weights[word] = weights.get(word, 0.0) + weight
    return normal


@functools.lru_cache(maxsize=1 << 17)
def _normal_form(word: str) -> str:
    """One lower-case form for singular and plural of regular English nouns; other words only lose their case."""
    word = word.lower()
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("shes", "ches", "xes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _written_forms(
    surfaces: Counter[tuple[str, str]], tokenizer: Tokenizer | None
) -> tuple[dict[str, str], dict[str, int]]:
    """For each normal form how it is written, and its tokens there (1 each without a tokenizer).

    Of singular and plural the one that the catalogue has most often, of equals the first in the alphabet; of its cases,
    lower case among them, the one of fewest tokens, of equals the most frequent. Words that the tokenizer cannot write
    are left out: the ID generator would learn to write unknown tokens, which are no text.
    """
    counts: dict[str, Counter[str]] = {}
    for (word, surface), count in surfaces.items():
        counts.setdefault(word, Counter())[surface.lower()] += count
    written = {word: min(forms, key=lambda form: (-forms[form], form)) for word, forms in counts.items()}
    if tokenizer is None:
        return written, dict.fromkeys(written, 1)
    cases = {(word, written[word]): 0 for word in written}
    cases |= {key: count for key, count in surfaces.items() if key[1].lower() == written[key[0]]}
    encoded = tokenizer.encode_batch([surface for _, surface in cases])
    best: dict[str, tuple[int, int, str]] = {}
    for ((word, surface), count), tokens in zip(cases.items(), encoded, strict=True):
        if tokens and tokenizer.unknown_id not in tokens:
            rank = (len(tokens), -count, surface)
            best[word] = min(best.get(word, rank), rank)
    return {word: rank[2] for word, rank in best.items()}, {word: rank[0] for word, rank in best.items()}
