"""What a word is, in any script: the one definition that IDs, keywords and tokens share.

A word is made of letters, digits and their marks (Unicode categories L, N and M), and of the underscore, after NFC: an
accent or a vowel sign that is a character of its own belongs to its letter. Joiners inside a word belong to it too,
soft hyphens are taken out. Everything else separates words, the apostrophe among it.

Scripts that put no blanks between words are split by `WordSplitter`, for keywords only: an ID keeps what it is given.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import regex

# A variation selector or keycap behind a symbol makes an emoji of it, not a word.
_MARK = r"[\p{M}--[\uFE0E\uFE0F\u20E3]]"
_JOINER = r"[\u200C\u200D\u2060]"
# Malayalam and Sinhala end words with a joiner behind a mark.
_WORD = regex.compile(
    rf"(?V1)[\p{{L}}\p{{N}}_](?:[\p{{L}}\p{{N}}_]|{_MARK}|{_JOINER}+(?=[\p{{L}}\p{{N}}_]|{_MARK})|(?<=\p{{M}})\u200D)*"
)
_WORD_CHARACTER = regex.compile(rf"(?V1)[\p{{L}}\p{{N}}]|{_MARK}")
_MARK_OR_JOINER = regex.compile(rf"(?V1)\p{{M}}|{_JOINER}")
_SOFT_HYPHEN = "\u00ad"

# A letter with what is written around it. Khmer and Myanmar put a letter below another with a sign of its own; Thai and
# Lao write some vowels before their consonant, and one behind it that Unicode calls a letter.
_GRAPHEME = regex.compile(
    r"[\u0E40-\u0E44\u0EC0-\u0EC4]?.(?:[\p{M}\u0E33\u0EB3\u200C\u200D\u2060]|(?<=[\u17D2\u1039])\p{L})*", regex.DOTALL
)
_SYLLABARY = r"\p{scx=Hiragana}|\p{scx=Katakana}"
_UNSPACED_LETTER = rf"\p{{Han}}|{_SYLLABARY}|[\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}]"
_UNSPACED = regex.compile(_UNSPACED_LETTER)
_IDEOGRAPH_OR_HANGUL = regex.compile(r"[\p{Han}\p{Hangul}]")


MISSING_WORDS = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "nat", "none", "null", "nil", "undefined"})
"""What programs that write tables spell where they have no value, in lower case."""


def is_missing(text: str) -> bool:
    """Tell whether a whole text is one of MISSING_WORDS, in upper or lower case."""
    return text.strip().casefold() in MISSING_WORDS


def normal_text(text: str) -> str:
    """Return the text in NFC and without soft hyphens, which only say where a line may break."""
    if text.isascii():
        return text
    # Hyphens first: one may stand between a letter and its accent, which then become one.
    return unicodedata.normalize("NFC", text.replace(_SOFT_HYPHEN, ""))


def find_words(text: str) -> list[str]:
    """Return the words of a text in order, with their case."""
    return _WORD.findall(normal_text(text))


def has_word(text: str) -> bool:
    """Tell whether a text has any letter or digit, or a mark of one."""
    return _WORD_CHARACTER.search(text) is not None


def word_characters(texts: Iterable[str]) -> set[str]:
    """Return the letters, digits and marks that the texts are written with."""
    return {character for character in set().union(*texts) if has_word(character)}


def shortened(word: str, length: int) -> str:
    """Return at most the first `length` characters of a word, cut before a letter and not between it and its marks."""
    while 0 < length < len(word) and _MARK_OR_JOINER.match(word[length]):
        length -= 1
    return word[:length]


def is_short_word(word: str) -> bool:
    """Tell whether one character can be a word by itself: an ideograph, or a syllable of Hangul."""
    return len(word) == 1 and _IDEOGRAPH_OR_HANGUL.match(word) is not None


class _Script(NamedTuple):
    """How runs of one script are split, in graphemes.

    A run of at most `whole` is one word. Longer ones are split into pieces of at most `longest`; where the catalogue
    says nothing about a place, pieces have `unseen`.
    """

    whole: int
    longest: int
    unseen: int


# Most Chinese words have two characters, few more than four. A run of one Japanese syllabary is mostly one word: a
# loanword or an ending. Words of the scripts of South-East Asia have one to four syllables, of one or two graphemes.
_SCRIPTS = {
    "han": _Script(whole=2, longest=4, unseen=2),
    "hiragana": _Script(whole=12, longest=8, unseen=4),
    "katakana": _Script(whole=12, longest=8, unseen=4),
    "southeast": _Script(whole=4, longest=8, unseen=4),
}
_RUN = regex.compile(
    r"(?P<han>\p{Han}+)|(?P<hiragana>\p{Hiragana}[\p{Hiragana}\u30FC\p{Mn}]*)"
    r"|(?P<katakana>\p{scx=Katakana}[\p{scx=Katakana}\p{Mn}]*)"
    r"|(?P<southeast>[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+)"
    rf"|(?:(?!{_UNSPACED_LETTER}).)+"
)


class WordSplitter:
    """Splits words of scripts without blanks by what recurs in a catalogue; other words stay as they are.

    No dictionary is needed, and the result is a pure function of the texts. A piece is the better the more its parts
    keep to one another: its count squared, over the mean of the products of the counts of its two parts, wherever it
    is cut (symmetric conditional probability). Of all ways to split a run the one with the greatest sum is taken.
    """

    def __init__(self, texts: Iterable[str]):
        """Counts what recurs in `texts`; costs next to nothing where none is in such a script."""
        runs = Counter(
            (match.lastgroup, match[0])
            for text in texts
            if not text.isascii() and _UNSPACED.search(text)
            for word in find_words(text)
            for match in _RUN.finditer(word)
            if match.lastgroup
        )
        # Every grapheme gets one character to stand for it, so that pieces are slices of strings.
        self._stands_for: dict[str, str] = {}
        self._character: dict[str, str] = {}
        self._split_runs: dict[tuple[str, str], list[str]] = {}
        counts: Counter[str] = Counter()
        encoded = [(_SCRIPTS[script], self._encode(run), count) for (script, run), count in runs.items()]
        for size in range(1, max(script.longest for script in _SCRIPTS.values()) + 1):
            level: Counter[str] = Counter()
            for script, run, count in encoded:
                if size > script.longest:
                    continue
                for start in range(len(run) - size + 1):
                    piece = run[start : start + size]
                    # What has a part that does not recur does not recur either.
                    if size == 1 or (piece[1:] in counts and piece[:-1] in counts):
                        level[piece] += count
            recurring = {piece: count for piece, count in level.items() if count > 1}
            if not recurring:
                break
            counts.update(recurring)
        self._scores = {piece: _cohesion(piece, counts) for piece in counts}

    def split(self, word: str) -> list[str]:
        """Return the pieces of one word of `find_words`, in order."""
        if word.isascii() or not _UNSPACED.search(word):
            return [word]
        pieces: list[str] = []
        for match in _RUN.finditer(word):
            run = [match[0]] if match.lastgroup is None else self._split_run(match.lastgroup, match[0])
            # A mark of another script than its letter's, or of none, begins a run but no piece.
            if pieces and _MARK_OR_JOINER.match(run[0]):
                pieces[-1] += run[0]
                run = run[1:]
            pieces += run
        return pieces

    def _split_run(self, script: str, run: str) -> list[str]:
        """The pieces of a run of one script."""
        key = (script, run)
        if key not in self._split_runs:
            best = self._best_split(_SCRIPTS[script], self._encode(run))
            self._split_runs[key] = ["".join(map(self._stands_for.__getitem__, piece)) for piece in best]
        return self._split_runs[key]

    def _encode(self, run: str) -> str:
        """The run with one character for each of its graphemes."""
        characters = []
        for grapheme in _GRAPHEME.findall(run):
            character = self._character.get(grapheme)
            if character is None:
                # Graphemes of several characters are numbered in a plane that has no characters of its own.
                character = grapheme if len(grapheme) == 1 else chr(0xF0000 + len(self._character))
                self._character[grapheme] = character
                self._stands_for[character] = grapheme
            characters.append(character)
        return "".join(characters)

    def _best_split(self, script: _Script, run: str) -> list[str]:
        """The pieces of one run, by dynamic programming over where the last piece begins."""
        if len(run) <= script.whole:
            return [run]
        best, begins = [0.0], [0]
        for end in range(1, len(run) + 1):
            # Of equals the longest last piece: it is tried first.
            top, begin = -math.inf, 0
            for start in range(max(0, end - script.longest), end):
                # Too little to matter beside what recurs, enough to prefer the usual length to single letters.
                unseen = 1e-3 * (end - start - 1) if end - start <= script.unseen else -1.0
                score = best[start] + self._scores.get(run[start:end], unseen)
                if score > top:
                    top, begin = score, start
            best.append(top)
            begins.append(begin)
        pieces = []
        end = len(run)
        while end:
            pieces.append(run[begins[end] : end])
            end = begins[end]
        return pieces[::-1]


def _cohesion(piece: str, counts: Counter[str]) -> float:
    """How well a piece that recurs holds together: 0 for one grapheme, at most the number of joints for several."""
    joints = len(piece) - 1
    if not joints:
        return 0.0
    products = sum(counts[piece[:cut]] * counts[piece[cut:]] for cut in range(1, len(piece)))
    return joints * counts[piece] ** 2 * joints / products
