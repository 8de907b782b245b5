"""The ID table: which textual ID, and which token sequence, stands for each item of the catalogue."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import regex

from idgenrec_jax.data.lines import holds_surrogate, parse_json, read_lines
from idgenrec_jax.data.spelling import check_spelling, lost_parts
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import WordSplitter, find_words, shortened
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer

MAX_ID_TOKENS = 30
"""Longest ID, in tokens without EOS, that an assignment may give."""

MAX_GIVEN_TOKENS = 3 * MAX_ID_TOKENS
"""Longest ID, in tokens without EOS, that a file may hold: of many scripts a letter takes three tokens of bytes."""

_SEVERAL_LETTERS = regex.compile(r"\X\X")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdTable:
    """One unique, non-empty textual ID per item.

    `items`: item names, in the order of the catalogue. `texts`: the words of each ID (see `clean_to_words`).
    `tokens`: the token IDs of each text, without EOS. Raises InputError, naming the items, when the three lengths
    differ, an item is listed twice, an ID is empty or two items share a token sequence.
    """

    items: tuple[str, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.items) == len(self.texts) == len(self.tokens):
            raise InputError(
                f"an ID table needs one text and one token sequence per item, found {len(self.items)} items, "
                f"{len(self.texts)} texts and {len(self.tokens)} token sequences; pass lists of equal length"
            )
        if len(set(self.items)) != len(self.items):
            twice = next(item for item, count in Counter(self.items).items() if count > 1)
            raise InputError(f"item {twice!r} is twice in the ID table; keep one entry per item")
        owner: dict[tuple[int, ...], int] = {}
        for index, tokens in enumerate(self.tokens):
            if not tokens or not self.texts[index].strip():
                raise InputError(f"item {self.items[index]!r} has an empty ID; give it at least one word")
            if tokens in owner:
                raise InputError(
                    f"items {self.items[owner[tokens]]!r} and {self.items[index]!r} have the same ID "
                    f"({self.texts[index]!r}); change one of them"
                )
            owner[tokens] = index

    def __len__(self) -> int:
        return len(self.items)


def clean_to_words(text: str) -> str:
    """Return the words of a text (see `data.words`), case kept, joined by single spaces; empty when it has none."""
    return " ".join(find_words(text))


def without_repeats(text: str, splitter: WordSplitter | None = None) -> str:
    """Return the words of a text, joined by single spaces, each where it stands first; case makes no other word.

    With a `splitter`, a word of a script without blanks loses the pieces that were written before. A piece of one
    letter stays: it may be an ending, or part of another word.
    """
    kept: dict[str, str] = {}
    seen: set[str] = set()
    for word in find_words(text):
        fresh = ""
        for piece in [word] if splitter is None else splitter.split(word):
            if piece.casefold() not in seen or not _SEVERAL_LETTERS.match(piece):
                fresh += piece
            seen.add(piece.casefold())
        if fresh:
            kept.setdefault(fresh.casefold(), fresh)
    return " ".join(kept.values())


def make_unique(
    base: str, fallback: str, taken: set[tuple[int, ...]], tokenizer: Tokenizer, *, next_number: dict[str, int]
) -> tuple[str, tuple[int, ...]]:
    """The words of `base` with the smallest whole number >= 2 behind them, if any is needed, that make them unique.

    `fallback` takes the place of a base without words, "item" that of a fallback without any. The end is cut until ID
    and number fit MAX_ID_TOKENS. `next_number` remembers, across calls that share `taken`, the
    first number still to try for a base. Returns (text, tokens) and adds the tokens to `taken`. Raises InputError for a
    tokenizer that cannot tell numbers from one another.
    """
    words = (clean_to_words(base) or clean_to_words(fallback) or "item").split(" ")
    if not tokenizer.encode(" ".join(words)):
        words = ["item"]
    # Six tokens are left for the number, which is more than any catalogue needs.
    while len(tokenizer.encode(" ".join(words))) > MAX_ID_TOKENS - 6:
        words = words[:-1] if len(words) > 1 else [shortened(words[0], len(words[0]) // 2) or "item"]
    stem = " ".join(words)
    number = next_number.get(stem, 1)
    before: tuple[int, ...] | None = None
    while True:
        text = stem if number == 1 else f"{stem} {number}"
        tokens = tuple(tokenizer.encode(text))
        # A number that is a word of the ID already would be read as a repetition.
        if tokens and tokens not in taken and not (number > 1 and str(number) in words):
            break
        if tokens == before:
            raise InputError(
                f"ID {text!r}: the tokenizer writes {number - 1} and {number} alike, so no number makes it unique; "
                "give a tokenizer that knows digits with --config.data.tokenizer"
            )
        before = tokens if number > 1 else None
        number += 1
    next_number[stem] = number + 1
    taken.add(tokens)
    return text, tokens


def save_table(table: IdTable, path: str | Path) -> None:
    """Writes one `{"item", "id", "tokens"}` object a line, under a temporary name first, then renamed to `path`.

    Makes the folder where there is none. Raises InputError if it cannot be written to or the disk is full.
    """
    with atomic_writer(path) as file:
        for item, text, tokens in zip(table.items, table.texts, table.tokens, strict=True):
            file.write(json.dumps({"item": item, "id": text, "tokens": list(tokens)}, ensure_ascii=False) + "\n")


def load_table(path: str | Path, items: Sequence[str], tokenizer: Tokenizer) -> IdTable:
    """Reads IDs for the catalogue `items` from our jsonl or from lines `ITEM words ...`; the result follows `items`.

    The tokens are always those of `tokenizer` for the cleaned words. An item that is listed with a blank ID is given
    the words of its own name as its ID, with a number behind them where that is taken, and a warning names it.
    Another warning names words that the tokenizer cannot write.

    Raises InputError, which names file and line:
    - the file is missing, empty, not UTF-8 or not of either form;
    - an item is unknown, listed twice or missing;
    - two items have one ID; where unknown words make them one, they are named;
    - an ID has no token, or more than MAX_GIVEN_TOKENS;
    - the file has tokens that `tokenizer` does not give.
    """
    path = Path(path)
    known = set(items)
    line_of: dict[str, int] = {}
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    owner: dict[tuple[int, ...], str] = {}
    blank: list[str] = []
    for number, item, raw_text, given_tokens in _rows(path):
        place = f"{path}:{number}"
        if item not in known:
            longer = next((name for name in items if name.startswith(f"{item} ")), "")
            raise InputError(
                f"{place}: item {item!r} is not in the catalogue; remove the line or use its own data folder"
                f"{_json_hint(longer)}"
            )
        if item in line_of:
            raise InputError(f"{place}: item {item!r} already has an ID on line {line_of[item]}; keep one of the lines")
        line_of[item] = number
        text = clean_to_words(raw_text)
        tokens = tuple(tokenizer.encode(text)) if text else ()
        if given_tokens is not None and given_tokens != tokens:
            raise InputError(
                f"{place}: the tokens of item {item!r} are {_short(given_tokens)}, this tokenizer gives "
                f'{_short(tokens)} for {text!r}; use the tokenizer the file was made with, or leave out "tokens"'
            )
        if text and not tokens:
            raise InputError(
                f"{place}: the tokenizer has no token for the ID of item {item!r} ({text!r}); give it another ID, or "
                "a tokenizer that knows its script with --config.data.tokenizer"
            )
        if not tokens:
            blank.append(item)
            continue
        if len(tokens) > MAX_GIVEN_TOKENS:
            raise InputError(
                f"{place}: the ID of item {item!r} has {len(tokens)} tokens, at most {MAX_GIVEN_TOKENS} "
                "are allowed; shorten it"
            )
        if tokens in owner:
            other = owner[tokens]
            raise InputError(
                f"{place}: item {item!r} has the ID of item {other!r} on line {line_of[other]} ({text!r}); "
                f"{_way_out(text, found[other][0], tokenizer)}"
            )
        owner[tokens] = item
        found[item] = (text, tokens)
    missing = [item for item in items if item not in line_of]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(items)} items of the catalogue have no line, the first is "
            f"{missing[0]!r}; add a line for each, or leave out the file to have IDs generated{_json_hint(missing[0])}"
        )
    taken = set(owner)
    next_number: dict[str, int] = {}
    for item in blank:
        found[item] = make_unique(item, item, taken, tokenizer, next_number=next_number)
        _LOGGER.warning(
            "%s:%d: item %r has a blank ID; it is given the ID %r", path, line_of[item], item, found[item][0]
        )
    texts, rows = zip(*(found[item] for item in items), strict=True)
    check_spelling(texts, tokenizer, f"IDs of {path}", tokens=rows)
    return IdTable(tuple(items), texts, rows)


def _json_hint(name: str) -> str:
    """What to add to a message about an item whose name has blanks; nothing about any other."""
    return f"; the name {name!r:.60} has blanks, for which a line is {_ROW_FORM}" if len(name.split()) > 1 else ""


def _way_out(text: str, other: str, tokenizer: Tokenizer) -> str:
    """What to do about two IDs of the same tokens."""
    if text == other:
        return "change one of them"
    lost = list(dict.fromkeys(part for parts in lost_parts([text, other], tokenizer) for part in parts))
    if not lost:
        return f"the tokenizer makes no difference between it and {other!r}: change one of them"
    unknown = any(tokenizer.unknown_parts([text])[0])
    how = f"writes {tokenizer.unknown_token} for" if unknown else "leaves out"
    return (
        f"the tokenizer {how} {', '.join(map(repr, lost[:5]))}, which it does not know: change one of them, or give a "
        "tokenizer that knows their script with --config.data.tokenizer"
    )


def _short(tokens: Sequence[int]) -> str:
    """At most eight tokens, for a message."""
    return "[" + ", ".join(map(str, tokens[:8])) + (", ...]" if len(tokens) > 8 else "]")


def _rows(path: Path) -> Iterator[tuple[int, str, str, tuple[int, ...] | None]]:
    """(line number, item, ID text, tokens or None) of every line of the file that is not blank."""
    as_json = None
    for number, line in read_lines(path, "expected one item a line, `ITEM words ...` or a JSON object"):
        if as_json is None:
            as_json = line.startswith("{")
        if as_json:
            yield number, *_parse_row(line, f"{path}:{number}")
        else:
            item, *text = line.split(None, 1)
            yield number, item, text[0] if text else "", None


def _parse_row(line: str, place: str) -> tuple[str, str, tuple[int, ...] | None]:
    """(item, ID text, tokens or None) of one JSON object."""
    row = parse_json(line, place, f"expected one {_ROW_FORM} a line")
    if not isinstance(row, dict) or not isinstance(row.get("item"), str) or not isinstance(row.get("id"), str):
        raise InputError(f"{place}: expected {_ROW_FORM} with texts for item and id; correct the line")
    if holds_surrogate(row["id"]):
        raise InputError(f"{place}: the ID {row['id']!r} holds half a surrogate pair; correct the line")
    tokens = row.get("tokens")
    if tokens is None:
        return row["item"], row["id"], None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InputError(f'{place}: "tokens" must be a list of whole numbers; correct the line or leave it out')
    return row["item"], row["id"], tuple(tokens)


_ROW_FORM = '{"item": ..., "id": ..., "tokens": [...]}'
