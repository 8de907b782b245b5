"""What an item might be called: its ID, and what else the ID generator writes for it."""

from collections.abc import Sequence
from typing import NamedTuple

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.ids.table import MAX_ID_TOKENS, IdTable


class Candidate(NamedTuple):
    """An ID that an item might have: its words, and its tokens without EOS."""

    text: str
    tokens: tuple[int, ...]


def with_old_ids(old: IdTable, written: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[Candidate]]:
    """Return each item's ID in `old`, and behind it what was written for the item: distinct IDs of a valid length."""
    flat = list(dict.fromkeys(text for texts in written for text in texts))
    encoded = dict(zip(flat, map(tuple, tokenizer.encode_batch(flat)), strict=True)) if flat else {}
    result = []
    for text, tokens, texts in zip(old.texts, old.tokens, written, strict=True):
        of_item = {tuple(tokens): Candidate(text, tuple(tokens))}
        for candidate in texts:
            if 1 <= len(encoded[candidate]) <= MAX_ID_TOKENS:
                of_item.setdefault(encoded[candidate], Candidate(candidate, encoded[candidate]))
        result.append(list(of_item.values()))
    return result
