"""Plain text out of the values of item records: no markup, no scripts, entities resolved once."""

import ast
import html
import re
import warnings
from collections.abc import Iterator
from datetime import date
from typing import Any

from idgenrec_jax.data.dataset import clean_text
from idgenrec_jax.data.lines import leaves
from idgenrec_jax.data.words import is_missing

# What is never closed goes on to the end, as a browser has it.
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
# A tag begins with a letter: "sizes <5" has none. Possessive, so that time grows with length, whatever the text.
_TAG = re.compile(r"</?[a-zA-Z](?:[^<>\"']++|\"[^\"<]*+\"|'[^'<]*+'|[\"'])*+>|<![a-zA-Z][^<>]*+>")
_LARGEST = 1e100
_LIST = re.compile(r"\s*\[\s*['\"]")


def plain_text(text: str) -> str:
    """Return a text on one line without markup.

    Comments, what scripts and style sheets hold, and tags go first. Then entities are resolved, once. Where this shows
    further tags, the text was markup that was escaped as a whole: they go, and its own entities are resolved. A "<"
    that begins no tag stays.
    """
    if "<" in text:
        text = _TAG.sub(" ", _HIDDEN.sub(" ", text))
    if "&" in text:
        text = html.unescape(text)
        if "<" in text:
            # What was escaped may only speak of a script, so one that is never closed stays.
            shown = _HIDDEN.sub(lambda found: " " if found[0].endswith(">") else found[0], text)
            shown, tags = _TAG.subn(" ", shown)
            text = html.unescape(shown) if tags else shown
    return clean_text(text, has_entities=False)


def plain_texts(value: Any) -> Iterator[str]:
    """Give the plain texts in a value or its (nested) lists, without blank ones and those that only say "N/A".

    A list that is written as a text, as some tables have them, is a list. Numbers and dates are texts; what is neither
    is left out.
    """
    for part in leaves(value):
        if isinstance(part, str) and _LIST.match(part):
            listed = _read_list(part)
            if listed is not None:
                yield from plain_texts(listed)
                continue
        text = plain_text(part) if isinstance(part, str) else _number_or_date(part)
        if text and not is_missing(text):
            yield text


def joined(value: Any) -> str:
    """Return the texts of a value as sentences that follow one another."""
    return " ".join(plain_texts(value))


def listed(value: Any) -> str:
    """Return the texts of a value as an enumeration without repeats."""
    return ", ".join(dict.fromkeys(plain_texts(value)))


def known_brand(text: str) -> str:
    """Return the name of a brand, or "" for what stands where the brand is unknown."""
    return "" if text.casefold() in ("unknown", "unknown brand") else text


def _number_or_date(value: Any) -> str:
    if isinstance(value, date):
        return str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN, infinities and numbers of thousands of digits say nothing of an item.
    return str(value) if is_number and abs(value) < _LARGEST else ""


def _read_list(text: str) -> list | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None
