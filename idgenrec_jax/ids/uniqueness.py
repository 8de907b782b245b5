"""Algorithm 1: a unique textual ID per item, chosen among candidates that are decoded in batches."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.table import MAX_ID_TOKENS, clean_to_words, make_unique

PENALTIES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
"""Diversity penalties in the order in which they are tried at each minimum length."""

MIN_LENGTHS = (1, 11, 21)
"""Minimum lengths in the order in which they are tried; the longest gives candidates of up to 30 tokens."""

Candidates = Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]], list[list[str]]]
"""(item indices, their minimum lengths, their diversity penalties) -> for each item its decoded texts, best first.

The texts of an item must depend on nothing but the item and its two numbers. No item occurs twice in a call.
"""

_LOGGER = logging.getLogger(__name__)


class Assignment(NamedTuple):
    """The ID of one item: its cleaned words, its tokens without EOS, and the stage that gave it.

    `stage` counts (minimum length, penalty) pairs from 0 in the order tried; -1 when a number made the ID unique.
    """

    text: str
    tokens: tuple[int, ...]
    stage: int


class _Item:
    """The distinct valid candidates of one item so far, best first, and how many stages have been decoded for it."""

    __slots__ = ("candidates", "stages")

    def __init__(self) -> None:
        self.candidates: dict[tuple[int, ...], Assignment] = {}
        self.stages = 0


def assign_unique_ids(
    candidates: Candidates,
    num_items: int,
    *,
    tokenizer: Tokenizer,
    item_names: Sequence[str],
    penalties: Sequence[float] = PENALTIES,
    min_lengths: Sequence[int] = MIN_LENGTHS,
    fallback_texts: Sequence[str] | None = None,
    clean: Callable[[str], str] = clean_to_words,
) -> list[Assignment]:
    """Gives each item, in order, its first valid candidate that no item before it has (Algorithm 1 of the paper).

    The stages are the penalties at the first minimum length, then the penalties at the second, and so on. A candidate
    is cleaned to its words by `clean`; it is valid if its tokens under `tokenizer` number 1 to MAX_ID_TOKENS, and free
    if that token sequence is not taken.

    The result is exactly that of handling one item after the other. Items are walked in order; one that finds nothing
    free in the stages decoded for it is marked and takes nothing, and the walk goes on. All marked items get their
    next stage, whichever that is, in one call of `candidates`, and the walk starts anew, until a walk marks none. What
    follows a marked item in a walk is provisional and is thrown away; it can only have caused a stage to be decoded
    that is not needed. That is harmless, because the order of an item's candidates is by stage and rank and more stages
    only extend its end. So in the last walk each item takes the first free candidate of its whole list given what all
    items before it have, which is what the sequential algorithm does. Every walk but the last extends at least one
    list, and lists are bounded by the number of stages, so the walks end.

    Items for which all stages hold nothing free come last, in order. Each gets the words of its first valid candidate,
    or of its entry in `fallback_texts` where it has none. The smallest whole number >= 2 behind them makes them unique.
    A warning counts these items; where one stage alone is allowed, it is a note. Without `fallback_texts`, raises
    InputError that names them.
    """
    stages = [(length, penalty) for length in min_lengths for penalty in penalties]
    items = [_Item() for _ in range(num_items)]
    encoded: dict[str, tuple[int, ...]] = {"": ()}
    marked = list(range(num_items))
    while marked:
        _decode_next_stage(candidates, stages, items, marked, tokenizer, encoded, clean)
        chosen, taken = _walk(items)
        marked = [index for index, choice in enumerate(chosen) if choice is None and items[index].stages < len(stages)]
    if num_items == 0:
        return []
    exhausted = [index for index, choice in enumerate(chosen) if choice is None]
    if not exhausted:
        return [choice for choice in chosen if choice is not None]
    if fallback_texts is None:
        names = ", ".join(repr(item_names[index]) for index in exhausted[:5])
        raise InputError(
            f"no unique ID for {len(exhausted)} of {num_items} items after {len(stages)} stages: {names}"
            f"{', ...' if len(exhausted) > 5 else ''}; give these items different texts, train the ID generator "
            "longer, or allow numbers behind IDs with --config.ids.fallback=suffix"
        )
    next_number: dict[str, int] = {}
    numbered: dict[int, Assignment] = {}
    for index in exhausted:
        first = next(iter(items[index].candidates.values()), None)
        base = first.text if first is not None else fallback_texts[index]
        text, tokens = make_unique(base, item_names[index], taken, tokenizer, next_number=next_number)
        numbered[index] = Assignment(text, tokens, -1)
    # One stage alone is a choice: what is taken shall have a number (see the presets).
    _LOGGER.log(
        logging.WARNING if len(stages) > 1 else logging.INFO,
        "%d of %d items have no unique ID after the stages that are allowed, %d; a number behind the words makes them "
        "unique, the first is %r for item %r",
        len(exhausted), num_items, len(stages), numbered[exhausted[0]].text, item_names[exhausted[0]],
    )  # fmt: skip
    return [numbered[index] if choice is None else choice for index, choice in enumerate(chosen)]


def _walk(items: list[_Item]) -> tuple[list[Assignment | None], set[tuple[int, ...]]]:
    """Each item's first free candidate (None where there is none), and all token sequences taken."""
    taken: set[tuple[int, ...]] = set()
    chosen: list[Assignment | None] = []
    for item in items:
        choice = next((found for tokens, found in item.candidates.items() if tokens not in taken), None)
        if choice is not None:
            taken.add(choice.tokens)
        chosen.append(choice)
    return chosen, taken


def _decode_next_stage(
    candidates: Candidates,
    stages: list[tuple[int, float]],
    items: list[_Item],
    marked: list[int],
    tokenizer: Tokenizer,
    encoded: dict[str, tuple[int, ...]],
    clean: Callable[[str], str],
) -> None:
    """Adds the candidates of its next stage to each marked item, with one call of `candidates` for all of them."""
    min_lengths, penalties = zip(*(stages[items[index].stages] for index in marked), strict=True)
    decoded = candidates(np.asarray(marked), np.asarray(min_lengths), np.asarray(penalties, np.float64))
    found = [[clean(text) for text in texts] for texts in decoded]
    unseen = list(dict.fromkeys(text for texts in found for text in texts if text and text not in encoded))
    encoded.update(zip(unseen, map(tuple, tokenizer.encode_batch(unseen)), strict=True))
    for index, texts in zip(marked, found, strict=True):
        item = items[index]
        for text in texts:
            tokens = encoded[text]
            if 1 <= len(tokens) <= MAX_ID_TOKENS and tokens not in item.candidates:
                item.candidates[tokens] = Assignment(text, tokens, item.stages)
        item.stages += 1
