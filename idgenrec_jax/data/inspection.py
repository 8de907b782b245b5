"""What a data set asks of a model, in numbers: its order, repeats, held-out items, lengths and texts; numpy only.

`inspect_data` counts what costs little, `measure_texts` reads the texts; `Inspection.findings` says in words what is
wrong.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from idgenrec_jax.data.checks import SHORTEST_JUDGED, key_steps, share_in_key_order
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.dataset_card import CARD_FILE
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import find_words
from idgenrec_jax.files import read_json

CARDS = (CARD_FILE, "preparation.json")
"""The files of a data folder that may tell how many interactions share user and time with another, the newer first."""

BUCKETS = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Where the buckets begin in which users, items and texts are counted; the last has no end."""

_PREPARE = "`python -m launch.prepare_data`"
_MOST_TIED = 0.9
# An order that has nothing to do with keys goes up in half of its steps; so many are more than chance.
_ASCENDING_BY_CHANCE = 0.55
_FEWEST_STEPS = 1000
_TEXTS_AT_ONCE = 10_000
_SUMMARY_LINES = 5


@dataclass(frozen=True)
class Order:
    """Whether sequences follow their item keys instead of time.

    `judged_users` have five items or more; of their sequences the share `in_key_order` follows the keys wholly. Of all
    `transitions`, `ascending` go up in the key and `descending` down. `tied_interactions` share user and time with
    another; None where the folder does not tell.
    """

    judged_users: int
    in_key_order: float
    transitions: int
    ascending: int
    descending: int
    tied_interactions: int | None

    @property
    def share_ascending(self) -> float:
        """The share of all transitions that go up in the key."""
        return _share(self.ascending, self.transitions)


@dataclass(frozen=True)
class HeldOut:
    """The test targets, `targets` in number.

    Of these, `in_history` are in their history already; `same_as_previous` are the item right before, which
    leave-one-out validates on; `cold` are in no training sequence. `cold_items` counts the different items of the last.
    """

    targets: int
    in_history: int
    same_as_previous: int
    cold: int
    cold_items: int


@dataclass(frozen=True)
class Distribution:
    """The smallest number, the quartiles, what nine in ten do not exceed, and the greatest; zeros where none are."""

    minimum: int
    lower_quartile: float
    median: float
    upper_quartile: float
    ninetieth_percentile: float
    maximum: int
    mean: float


@dataclass(frozen=True)
class TextLengths:
    """How long the texts of the items are, in words or in tokens (`unit`), the ID generator's prompt left out."""

    unit: str
    lengths: Distribution
    by_length: dict[str, int]


@dataclass(frozen=True)
class Finding:
    """What a user should know of the data, in a sentence; `defeats_test` where the test split then measures nothing."""

    text: str
    defeats_test: bool = False

    def __str__(self) -> str:
        return f"THE TEST SPLIT MEANS NOTHING. {self.text}" if self.defeats_test else self.text


@dataclass(frozen=True)
class Inspection:
    """The numbers of a data set, whose targets are held out as `split` says.

    `repeated_interactions` are with an item that the user had before. `training_transitions` are from one item of a
    training sequence to the next. `history_lengths` are in items, before the test targets. `duplicate_texts` counts
    the items whose text, not blank, another item has too. Buckets are named "5-9".
    """

    name: str
    split: str
    users: int
    items: int
    interactions: int
    order: Order
    users_with_repeats: int
    repeated_interactions: int
    held_out: HeldOut
    training_transitions: int
    history_lengths: Distribution
    users_by_interactions: dict[str, int]
    items_by_interactions: dict[str, int]
    blank_texts: int
    duplicate_texts: int

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with the data, the worst first; nothing where nothing is."""
        return [*_faults(self), *_remarks(self)]

    def summary(self) -> list[str]:
        """Return at most five lines for a log: numbers, then the first findings."""
        order, held_out = self.order, self.held_out
        ties = "" if order.tied_interactions is None else f"; {order.tied_interactions:,} interactions tied in time"
        lines = [
            f"data {self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions; texts: "
            f"{self.blank_texts:,} blank, {self.duplicate_texts:,} not unique",
            f"order: {percent(order.in_key_order, 1)} of users wholly by item key, "
            f"{percent(order.ascending, order.transitions)} of transitions up in the key{ties}",
            f"test targets: {percent(held_out.in_history, held_out.targets)} in the history already, "
            f"{percent(held_out.same_as_previous, held_out.targets)} equal to the item right before, "
            f"{percent(held_out.cold, held_out.targets)} in no training sequence",
        ]
        return [*lines, *map(str, self.findings)][:_SUMMARY_LINES]


def inspect_data(dataset: Dataset, folder: Path | None = None) -> Inspection:
    """Return the numbers of a data set; its `folder` may hold a card that tells of ties in time.

    Raises:
        InputError: the card cannot be read.
    """
    lengths = np.asarray([len(sequence) for sequence in dataset.sequences], dtype=np.int64)
    together = np.concatenate([np.zeros(0, np.int32), *dataset.sequences])
    # [users] -> [interactions]
    users = np.repeat(np.arange(len(lengths)), lengths)
    is_repeat = _repeats(together, users, len(dataset.items))
    ascending, descending, transitions = key_steps(dataset.items, dataset.sequences)
    in_key_order, judged = share_in_key_order(dataset.items, dataset.sequences)
    training = [dataset.training_sequence(user) for user in range(len(dataset.users))]
    texts = Counter(text for text in dataset.item_texts if text)
    return Inspection(
        name=dataset.name,
        split=dataset.split,
        users=len(dataset.users),
        items=len(dataset.items),
        interactions=int(lengths.sum()),
        order=Order(judged, in_key_order, transitions, ascending, descending, _tied_interactions(folder)),
        users_with_repeats=len(np.unique(users[is_repeat])),
        repeated_interactions=int(is_repeat.sum()),
        held_out=_held_out(dataset, together, is_repeat, training),
        training_transitions=sum(max(len(sequence) - 1, 0) for sequence in training),
        history_lengths=distribution(dataset.held_out_cases("test")[1]),
        users_by_interactions=count_in_buckets(lengths),
        items_by_interactions=count_in_buckets(np.bincount(together, minlength=len(dataset.items))),
        blank_texts=len(dataset.item_texts) - texts.total(),
        duplicate_texts=sum(count for count in texts.values() if count > 1),
    )


def measure_texts(texts: Sequence[str], tokenizer: Tokenizer | None = None) -> TextLengths:
    """Return how long texts are, in tokens where there is a tokenizer, otherwise in words of any script."""
    if tokenizer is None:
        lengths = [len(find_words(text)) for text in texts]
    else:
        # Some at a time: the tokens of a million texts are a gigabyte.
        blocks = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE))
        lengths = [len(tokens) for block in blocks for tokens in tokenizer.encode_batch(block)]
    values = np.asarray(lengths, dtype=np.int64)
    return TextLengths("words" if tokenizer is None else "tokens", distribution(values), count_in_buckets(values))


def distribution(values: Int[np.ndarray, " values"]) -> Distribution:
    """Return how values are spread."""
    if not len(values):
        return Distribution(0, 0.0, 0.0, 0.0, 0.0, 0, 0.0)
    quarter, half, three_quarters, most = np.percentile(values, (25, 50, 75, 90)).tolist()
    return Distribution(int(values.min()), quarter, half, three_quarters, most, int(values.max()), float(values.mean()))


def count_in_buckets(values: Int[np.ndarray, " values"]) -> dict[str, int]:
    """Return how many values are in each bucket, from the first to the last that has any, by name ("3", "5-9")."""
    bounds = np.asarray(BUCKETS)
    counts = np.bincount(np.searchsorted(bounds, values, side="right") - 1, minlength=len(bounds))
    used = np.flatnonzero(counts)
    if not len(used):
        return {}
    return {_bucket_name(place): int(counts[place]) for place in range(used[0], used[-1] + 1)}


def percent(part: int | float, whole: int | float) -> str:
    """Return a share as text, "63.0%"; a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _bucket_name(place: int) -> str:
    first = BUCKETS[place]
    if place + 1 == len(BUCKETS):
        return f"{first}+"
    last = BUCKETS[place + 1] - 1
    return str(first) if first == last else f"{first}-{last}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _repeats(
    items: Int[np.ndarray, " interactions"], users: Int[np.ndarray, " interactions"], num_items: int
) -> Bool[np.ndarray, " interactions"]:
    """Which interactions are with an item that their user had before."""
    _, first = np.unique(users.astype(np.int64) * num_items + items, return_index=True)
    is_repeat = np.ones(len(items), dtype=bool)
    is_repeat[first] = False
    return is_repeat


def _held_out(
    dataset: Dataset,
    together: Int[np.ndarray, " interactions"],
    is_repeat: Bool[np.ndarray, " interactions"],
    training: Sequence[Int[np.ndarray, " _"]],
) -> HeldOut:
    users, positions = dataset.held_out_cases("test")
    starts = np.cumsum([0, *map(len, dataset.sequences[:-1])])
    places = starts[users] + positions
    targets = together[places]
    is_trained = np.zeros(len(dataset.items), dtype=bool)
    is_trained[np.concatenate([np.zeros(0, np.int32), *training])] = True
    cold = targets[~is_trained[targets]]
    return HeldOut(
        targets=len(users),
        in_history=int(is_repeat[places].sum()),
        same_as_previous=int((targets == together[places - 1]).sum()),
        cold=len(cold),
        cold_items=len(np.unique(cold)),
    )


def _tied_interactions(folder: Path | None) -> int | None:
    """The interactions that share user and time with another, as the card of a data folder has it."""
    for name in CARDS:
        if folder is not None and (folder / name).is_file():
            card = read_json(folder / name, remedy=f"delete it, or make the folder anew with {_PREPARE}")
            tied = card.get("tied_interactions") if isinstance(card, dict) else None
            if isinstance(tied, int) and not isinstance(tied, bool):
                return tied
    return None


def _faults(found: Inspection) -> list[Finding]:
    """Why the test split means nothing, if it does."""
    order, held_out = found.order, found.held_out
    faults = []
    if not held_out.targets:
        faults.append(
            "Nothing to test on: no user has a test target with anything before it. Leave-one-out needs three items."
        )
    if not found.training_transitions:
        faults.append("Nothing can be trained on: in training no item follows another.")
    if order.in_key_order > 0.5:
        faults.append(
            f"Not in the order of time, it seems: {percent(order.in_key_order, 1)} of the users with {SHORTEST_JUDGED} "
            "items or more have them in the order of the item keys. The last item is then not the latest. Sort the "
            f"items of every user by time, as {_PREPARE} does; all is well only where keys were given out by time."
        )
    if order.tied_interactions is not None and order.tied_interactions > _MOST_TIED * found.interactions:
        faults.append(
            f"Hardly any order: {percent(order.tied_interactions, found.interactions)} of the interactions share user "
            "and time with another. Find times that tell more, of day or second."
        )
    if held_out.same_as_previous > held_out.targets / 2:
        faults.append(
            f"{percent(held_out.same_as_previous, held_out.targets)} of the test targets are the item right before "
            f"them again: naming the last item wins. Count repeats once, by --duplicates=first of {_PREPARE}."
        )
    return [Finding(text, defeats_test=True) for text in faults]


def _remarks(found: Inspection) -> list[Finding]:
    """What a user should know, though the test split can be used."""
    order, held_out = found.order, found.held_out
    remarks = []
    share = _share(order.ascending, order.ascending + order.descending)
    if order.in_key_order <= 0.5 and order.ascending + order.descending >= _FEWEST_STEPS:
        for part, where in ((share, "up"), (1 - share, "down")):
            if part > _ASCENDING_BY_CHANCE:
                remarks.append(
                    f"{percent(part, 1)} of the transitions between different items go {where} in the item key, where "
                    "50% would be chance. Where ties in time were listed by key, a model can learn that order, which "
                    "says nothing of what came first."
                )
    tied = order.tied_interactions
    if tied is not None and _MOST_TIED * found.interactions >= tied > found.interactions / 2:
        remarks.append(
            f"{percent(tied, found.interactions)} of the interactions share user and time with another: their order is "
            "a draw, and so are many of the test targets."
        )
    if held_out.targets / 2 >= held_out.same_as_previous > held_out.targets / 10:
        remarks.append(
            f"{percent(held_out.same_as_previous, held_out.targets)} of the test targets are the item right before "
            "them again."
        )
    if held_out.in_history > held_out.targets / 10:
        remarks.append(
            f"{percent(held_out.in_history, held_out.targets)} of the test targets are in the history already. "
            "Keep --config.evaluation.seen_items=keep: to remove seen items would lose these targets."
        )
    if held_out.cold > held_out.targets / 20:
        remarks.append(
            f"{percent(held_out.cold, held_out.targets)} of the test targets are in no training sequence: only their "
            f"text can lead to them. A higher --item_core of {_PREPARE} leaves fewer."
        )
    if found.blank_texts > found.items / 20:
        remarks.append(f"{percent(found.blank_texts, found.items)} of the items have no text to make an ID of.")
    if found.duplicate_texts > found.items / 20:
        remarks.append(
            f"{percent(found.duplicate_texts, found.items)} of the items have the text of another item: numbers will "
            "tell their IDs apart, not words."
        )
    if held_out.targets and not held_out.in_history:
        remarks.append(
            "No test target is in its history: --config.evaluation.seen_items=remove can only raise the metrics; say "
            "which you used."
        )
    return [Finding(text) for text in remarks]
