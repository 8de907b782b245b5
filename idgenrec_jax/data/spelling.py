"""What a tokenizer loses of words: unknown tokens, letters that vanish, and different texts of the same tokens."""

import functools
import logging
import unicodedata
from collections.abc import Sequence

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import has_word, word_characters
from idgenrec_jax.errors import InputError

_LOST_SHARE = 0.9
"""Share of different texts that may have the tokens of another before training on them is refused."""

_CHUNK = 1024
_WAY_OUT = (
    "give a tokenizer that knows their script with --config.data.tokenizer (that of mT5 knows 101 languages), with "
    "weights that belong to it or random ones"
)
_LOGGER = logging.getLogger(__name__)


def check_spelling(
    texts: Sequence[str], tokenizer: Tokenizer, what: str, *, tokens: Sequence[Sequence[int]] | None = None
) -> None:
    """Warn where `tokenizer` cannot write words of the texts, once for each message.

    `what` says in the plural what the texts are ("item texts"); `tokens` are those of `tokenizer`, if they are at hand.
    Symbols that it cannot write are no loss. Texts that differ only in blanks, case or compatible characters count as
    equal: many tokenizers make no difference.

    Raises:
        InputError: nothing is left to learn from: no text has a known word, or words are lost and nine in
            ten or more of the texts that differ (of fewer than ten, all but one) have the tokens of another.
    """
    tokens = tokenizer.encode_batch(texts) if tokens is None else tokens
    lost = _lost(texts, tokens, tokenizer)
    if not lost:
        return
    message = _describe(texts, tokens, tokenizer, lost)
    groups, num_different = _same_tokens(texts, tokens)
    num_same = sum(len(group) - 1 for group in groups if any(index in lost for index in group))
    if num_same:
        group = next(group for group in groups if any(index in lost for index in group))
        example = " and ".join(repr(texts[index][:40]) for index in group[:2])
        message += f"; {num_same} of {num_different} cannot be told from another, such as {example}"
    # Field names and punctuation are all that such texts have in common: nothing can be learnt of an item.
    unwritten = tokenizer.punctuation_ids | {tokenizer.unknown_id}
    no_word = all(unwritten.issuperset(row) for text, row in zip(texts, tokens, strict=True) if has_word(text))
    if no_word or (num_same and num_same >= min(num_different - 1, _LOST_SHARE * num_different)):
        raise InputError(f"{what}: {message}: nothing is left to learn from; {_WAY_OUT}")
    _warn_once(f"{what}: {message}; to keep these words, {_WAY_OUT}")


def check_prompt_spelling(texts: Sequence[str], tokenizer: Tokenizer, what: str) -> None:
    """Warn where `tokenizer` cannot write words of what stands around the IDs in prompts, once for each message.

    Nothing is refused, as `check_spelling` may: the IDs are what is learned from, and templates may well read alike.
    """
    tokens = tokenizer.encode_batch(texts)
    lost = _lost(texts, tokens, tokenizer)
    if lost:
        way_out = "write templates in words that it knows, in a file that --config.data.prompts names"
        _warn_once(f"{what}: {_describe(texts, tokens, tokenizer, lost)}; {way_out}, or {_WAY_OUT}")


def vanishing_letters(texts: Sequence[str], tokenizer: Tokenizer) -> frozenset[str]:
    """Return the letters, digits and marks of the texts that leave no trace in tokens, not even an unknown one."""
    # No catalogue has more than some thousand different ones: each is tried by itself.
    letters = sorted(word_characters(texts))
    rows = tokenizer.encode_batch(letters)
    decoded = tokenizer.decode_batch(rows)
    return frozenset(
        letter
        for letter, row, text in zip(letters, rows, decoded, strict=True)
        # U+FFFD stands for bytes that are no whole letter: the vocabulary lacks some.
        if tokenizer.unknown_id not in row and ("\ufffd" in text or not has_word(text))
    )


def lost_parts(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[str]]:
    """Return for each text the parts of words that a tokenizer cannot write: unknown pieces and letters that vanish."""
    found = []
    # What says where a token stands in its text takes much memory: a part of the texts at a time.
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        vanishing = vanishing_letters(chunk, tokenizer)
        for text, unknown in zip(chunk, tokenizer.unknown_parts(chunk), strict=True):
            letters = [letter for letter in text if letter in vanishing] if vanishing else []
            found.append(list(dict.fromkeys([*filter(has_word, unknown), *letters])))
    return found


def _lost(texts: Sequence[str], tokens: Sequence[Sequence[int]], tokenizer: Tokenizer) -> dict[int, list[str]]:
    """The places of the texts of which parts of words are lost, and those parts."""
    vanishing = vanishing_letters(texts, tokenizer)
    suspect = [
        index
        for index, (text, row) in enumerate(zip(texts, tokens, strict=True))
        if tokenizer.unknown_id in row or (vanishing and not vanishing.isdisjoint(text))
    ]
    parts = lost_parts([texts[index] for index in suspect], tokenizer)
    return {index: lost for index, lost in zip(suspect, parts, strict=True) if lost}


def _describe(
    texts: Sequence[str], tokens: Sequence[Sequence[int]], tokenizer: Tokenizer, lost: dict[int, list[str]]
) -> str:
    """How much is lost, and the first examples."""
    examples = list(dict.fromkeys(part for parts in list(lost.values())[:3] for part in parts))
    shown = ", ".join(repr(part[:40]) for part in examples[:3]) + (", ..." if len(examples) > 3 else "")
    message = f"the tokenizer does not know words of {len(lost)} of {len(texts)}, such as {shown}"
    unknown = sum(token == tokenizer.unknown_id for index in lost for token in tokens[index])
    if unknown:
        total = sum(map(len, tokens))
        message += f" ({unknown} of {total} tokens are {tokenizer.unknown_token}, {unknown / total:.1%})"
    return message


def _same_tokens(texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Groups of texts that differ and have the same tokens, by place, and how many texts differ in all."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        essence = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        first.setdefault(essence, index)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in first.values():
        groups.setdefault(tuple(tokens[index]), []).append(index)
    return [group for group in groups.values() if len(group) > 1], len(first)


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning that was not logged before: the same texts are tokenised again in every round."""
    _LOGGER.warning("%s", message)
