"""The public API: a trained run that recommends, again and again, and is evaluated.

Prompts are put into batches of few sizes and few widths, so that few programs are compiled; these are kept on disk. The
catalogue's form for a search is made once and stays on the devices.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from idgenrec_jax.compilation_cache import use_compilation_cache
from idgenrec_jax.config import SEARCHES
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.held_out_batches import pad_rows, power_of_two
from idgenrec_jax.data.packing import WIDTH_MULTIPLE, round_up
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.metrics import SPLITS
from idgenrec_jax.evaluation.ranker import Ranker, Ranking
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.processes import put
from idgenrec_jax.sharding import batch_devices, batch_sharding, replicated
from idgenrec_jax.trained_run import evaluation_catalogue, evaluation_renderer, load_ids, load_run, load_run_data

BATCH_SIZES = (1, 8, 32)
"""Histories of one call of a compiled program, where --config.evaluation.batch_size allows and before rounding up to
the devices that split a batch."""
NARROWEST_PROMPT = 32
NARROWEST_SEEN = 32
_MOST_NAMED = 5

if TYPE_CHECKING:
    Histories = Iterable[Iterable[str]]
    Count = int
else:
    # Checked by `recommend` itself, whose errors say more than those of a run-time type checker.
    Histories = Count = Any


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its name, its textual ID, and its score (log-probability / length**length_penalty)."""

    item: str
    text: str
    score: float


class Recommender:
    """A trained run, at its best validation: the recommender and the IDs that belong to it.

    `items` are the names of the catalogue, `ids` the table of their IDs, `tokenizer` and `config` those of the run.
    `selected` tells which of its states this is.
    """

    def __init__(self, workdir: str | Path, data: str | None = None):
        """Load the best checkpoint of `workdir`, which is all that recommending needs.

        `data` replaces the data folder that the run was trained on; only `evaluate` and `dataset` read it.

        Raises:
            InputError: `workdir` holds no run or no checkpoint yet, or it is damaged.
        """
        use_compilation_cache()
        self._run, self._data = load_run(workdir), data
        self._ids = load_ids(self._run)
        self.config, self.tokenizer, self.selected = self._run.config, self._run.tokenizer, self._run.selected
        self._params = self._run.params["recommender"]
        self._ranker = Ranker(
            self._run.graphdefs["recommender"],
            self.config,
            place_batch=partial(put, sharding=batch_sharding(self._run.mesh)),
        )
        self._renderer = evaluation_renderer(self._run, self._ids)
        self._index = {name: number for number, name in enumerate(self.items)}
        self._batch_sizes = batch_sizes(self.config.evaluation.batch_size, batch_devices(self._run.mesh))
        self._widths = prompt_widths(longest_prompt(self._renderer))
        self._catalogues: dict[str, Trie | CataloguePlan] = {}

    @property
    def items(self) -> tuple[str, ...]:
        """The names of all items, in the order of the run's ID table."""
        return self._ids.items.items

    @property
    def ids(self) -> IdTable:
        """The textual ID of every item, in the order of `items`."""
        return self._ids.items

    @cached_property
    def dataset(self) -> Dataset:
        """The data of the run, read when it is first asked for.

        Raises:
            InputError: the data has moved or is damaged.
        """
        return load_run_data(self._run, self._data)

    def evaluate(self, split: str, search: str | None = None) -> Ranking:
        """Rank the whole catalogue for every user of a split, "validation" or "test".

        `search` is "beam" (constrained beam search) or "exact" (every item is scored). None: as the run is configured.

        Raises:
            InputError: the data of the run cannot be read, or has items the run has no IDs for; or another split or
                search.
        """
        search = self._checked_search(search)
        if split not in SPLITS:
            raise InputError(f"split: found {split!r:.40}, expected one of {', '.join(SPLITS)}")
        # The data set may list its items in another order.
        renderer = evaluation_renderer(self._run, load_ids(self._run, self.dataset), self.dataset)
        catalogue = evaluation_catalogue(self._run, renderer, search)
        return self._ranker.rank(self._params, renderer, catalogue, split, title=f"{split}, {search} search")

    def recommend(
        self, histories: Histories, count: Count = 10, search: str | None = None
    ) -> list[list[Recommendation]]:
        """Return the `count` best items for each history, a list of item names, oldest first; fewer items: all of them.

        Of a history the last `--config.data.max_history` items count. An empty one gives what the recommender writes
        after a prompt without items. With `--config.evaluation.seen_items=remove` no item of a history is returned.
        `search` is that of `evaluate`.

        Raises:
            InputError: an item that the catalogue does not have, something that is not a list of lists of names, a
                count that is not between 1 and the beams, another search, or a run that was trained with user IDs.
        """
        search = self._checked_search(search)
        count = self._checked_count(count)
        numbered = self._numbered(histories)
        if self.config.data.user_ids != "none":
            raise InputError("this run was trained with user IDs, which new histories have not; use evaluate")
        # Of each prompt, its tokens and the number of the history item that each belongs to.
        prompts = [self._renderer.numbered_prompt(0, history, 0) for history in numbered]
        results: list[list[Recommendation]] = [[] for _ in prompts]
        # Sorted by length, so that a long history does not widen the batches of short ones.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row][0]))
        for start, size in plan_batches(len(order), self._batch_sizes):
            rows = order[start : start + size]
            width = next(width for width in self._widths if width >= len(prompts[rows[-1]][0]))
            batch = pad_rows([prompts[row][0] for row in rows], size, width)
            prompt_items = seen = None
            if self._renderer.is_causal:
                prompt_items, _ = pad_rows([prompts[row][1] for row in rows], size, width)
            if self.config.evaluation.seen_items == "remove":
                seen = seen_items([numbered[row] for row in rows], size)
            # Both are [size, beams]; the rows beyond `rows` are padding.
            items, scores = self._ranker.search(
                self._params, *batch, self._catalogue(search), prompt_items=prompt_items, seen=seen
            )
            for place, row in enumerate(rows):
                results[row] = [
                    Recommendation(self.items[item], self.ids.texts[item], float(score))
                    for item, score in zip(items[place, :count], scores[place, :count], strict=True)
                    if item >= 0
                ]
        return results

    def _catalogue(self, search: str) -> Trie | CataloguePlan:
        if search not in self._catalogues:
            catalogue = evaluation_catalogue(self._run, self._renderer, search)
            self._catalogues[search] = put(catalogue, replicated(self._run.mesh))
        return self._catalogues[search]

    def _checked_search(self, search: Any) -> str:
        if search is None:
            return self.config.evaluation.search
        if search not in SEARCHES:
            raise InputError(f"search: found {search!r:.40}, expected one of {', '.join(SEARCHES)}")
        return search

    def _checked_count(self, count: Any) -> int:
        beams = self.config.evaluation.num_beams
        try:
            number = operator.index(count)
        except TypeError as error:
            found = f"count={count!r}: found a {type(count).__name__}"
            raise InputError(f"{found}, expected a whole number from 1 to {beams}") from error
        if not 1 <= number <= beams:
            raise InputError(f"{number} recommendations asked for, expected 1 to {beams}, the beams of the run")
        return number

    def _numbered(self, histories: Any) -> list[Int[np.ndarray, " history"]]:
        """The numbers of the items of every history."""
        expected = "expected a list of histories, each a list of item names, oldest first"
        if not _is_list_like(histories):
            raise InputError(f"histories: found {_short(histories)}, {expected}")
        numbered: list[np.ndarray] = []
        unknown: list[tuple[int, str]] = []
        for place, history in enumerate(histories):
            if not _is_list_like(history):
                hint = "; one history alone is written recommend([[...]])" if isinstance(history, str) else ""
                raise InputError(f"history {place}: found {_short(history)}, {expected}{hint}")
            names = list(history)
            for name in names:
                if not isinstance(name, str):
                    raise InputError(f"history {place}: found {_short(name)} as an item, expected its name, a text")
            unknown += [(place, name) for name in names if name not in self._index]
            numbered.append(np.asarray([self._index.get(name, -1) for name in names], np.int32))
        if unknown:
            raise InputError(self._not_in_catalogue(unknown))
        return numbered

    def _not_in_catalogue(self, unknown: Sequence[tuple[int, str]]) -> str:
        """The message about items, each with the number of its history."""
        where = f"in the catalogue of {self._run.data_name}"
        if len(unknown) == 1:
            ((place, name),) = unknown
            return f"history {place}: item {str(name)!r} is not {where}; leave it out"
        named = ", ".join(f"{str(name)!r} (history {place})" for place, name in unknown[:_MOST_NAMED])
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        return f"items {named}{more} are not {where}; leave them out"


def batch_sizes(most: int, devices: int) -> tuple[int, ...]:
    """Return the numbers of histories that programs are compiled for: at most `most`, multiples of `devices`."""
    return tuple(sorted({round_up(min(size, most), devices) for size in BATCH_SIZES}))


def plan_batches(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first row, size) of the batches that take `count` rows; only the last may have room to spare."""
    smallest, *larger = sizes
    batches, start = [], 0
    while start < count:
        left = count - start
        full = [size for size in larger if size <= left]
        # A few rows are one call of the next larger size, not as many calls of the smallest.
        size = full[-1] if full else smallest if left <= smallest or not larger else larger[0]
        batches.append((start, size))
        start += size
    return batches


def seen_items(histories: Sequence[Int[np.ndarray, " _"]], count: int) -> Int[np.ndarray, "count seen"]:
    """Return the items of each history once, as `count` rows filled up with -1; widths are powers of two from 32 on."""
    distinct = [np.unique(history).tolist() for history in histories]
    return pad_rows(distinct, count, power_of_two(max([NARROWEST_SEEN, *map(len, distinct)])), fill=-1)[0]


def longest_prompt(renderer: PromptRenderer) -> int:
    """Return a number of tokens, a multiple of 8, that no prompt of the first template exceeds."""
    longest_id = max(map(len, renderer.item_ids))
    length = renderer.templates[0].input_length(renderer.max_history) + renderer.max_history * longest_id
    return round_up(min(length, renderer.max_prompt_length), WIDTH_MULTIPLE)


def prompt_widths(longest: int) -> tuple[int, ...]:
    """Return the widths in tokens that prompts are padded to: 32, doubled until the last, `longest`, is reached."""
    widths = [NARROWEST_PROMPT]
    while widths[-1] < longest:
        widths.append(2 * widths[-1])
    return (*widths[:-1], longest)


def _is_list_like(value: Any) -> bool:
    """Whether it has elements in an order, and is not a text."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set)


def _short(value: Any) -> str:
    """A value as a message shows it."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= 40 else text[:37] + "..."
    return f"the text {text}" if isinstance(value, str) else f"{text} ({type(value).__name__})"
