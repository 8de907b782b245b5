"""The embedded catalogue that `--data=sample` uses: about 500 invented products and 1,000 shoppers.

Shoppers have tastes (two product categories with a favourite brand each, two authors, two seasonal brands) and habits
that make the next purchase predictable from the ones before it: they go on with a series volume by volume, buy the
accessories and then the refills of a device, and follow a seasonal line through the year. Between the steps of one
habit they begin others or buy everyday goods, so several habits run at once.

Everything follows from a fixed seed through `random.Random.random` alone, the one generator whose stream Python
guarantees never to change: the catalogue is the same on every machine.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from idgenrec_jax.data.dataset import Dataset, item_text, load_dataset
from idgenrec_jax.data.sample_words import BRANDS, DEVICES, EVERYDAY, SEASONAL, SEASONS, SERIES
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.files import expand_home

NUM_USERS = 1000
SEED = 2024
TOKENIZER_FILE = "sample_tokenizer.json"
SHORTEST_SEQUENCE, LONGEST_SEQUENCE = 5, 15

_GO_ON = 0.5
"""Probability that a shopper with a habit under way buys its next product instead of something new."""
_NEWEST_HABIT = 0.85
"""Probability that, among several habits under way, it is the newest one."""
_FAVOURITE_BRAND = 0.6
_OWNS_DEVICE = 0.4
_SKIP_SECOND_ACCESSORY = 0.3
_BUY_REFILL_AGAIN = 0.4

_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth")


@dataclass(frozen=True)
class _Product:
    """One item: its text fields; `code` is its identifier."""

    code: str
    title: str
    brand: str
    categories: str
    description: str


@dataclass
class _Catalogue:
    """The products, and for each habit the product indices that it walks through."""

    products: list[_Product] = field(default_factory=list)
    devices: dict[str, list[list[int]]] = field(default_factory=dict)
    everyday: dict[str, list[int]] = field(default_factory=dict)
    series: dict[str, list[list[int]]] = field(default_factory=dict)
    seasonal: dict[str, list[list[int]]] = field(default_factory=dict)

    def add(self, title: str, brand: str, categories: str, description: str) -> int:
        """Appends a product and returns its index."""
        code = f"S{len(self.products) + 1:04d}"
        self.products.append(_Product(code, title, brand, categories, description))
        return len(self.products) - 1


@dataclass
class _Shopper:
    """What a shopper likes, and the habits under way as the products that they still have to come, newest last.

    Categories, authors and seasonal brands are triples that name the first choice twice and the second once.
    """

    categories: Sequence[str]
    favourite_brand: dict[str, int]
    authors: Sequence[str]
    seasonal_brands: Sequence[str]
    habits: list[list[int]] = field(default_factory=list)


def load_data(path: str) -> Dataset:
    """Return the embedded catalogue ("sample") or the one in a data folder."""
    return load_sample() if path == "sample" else load_dataset(path)


def data_folder(path: str) -> Path | None:
    """Return the folder that a path of `load_data` names; the embedded catalogue has none."""
    return None if path == "sample" else Path(expand_home(path))


@lru_cache(maxsize=1)
def load_sample() -> Dataset:
    """The embedded data set, named "sample": every sequence has 5 to 15 interactions.

    Made once in a process; its arrays are read-only.
    """
    catalogue = _make_catalogue()
    # A stream for each shopper, so that a change to one sequence leaves the others as they are.
    sequences = []
    for user in range(NUM_USERS):
        sequence = np.asarray(_make_sequence(catalogue, random.Random(SEED * 1_000_003 + user)), dtype=np.int32)
        sequence.setflags(write=False)
        sequences.append(sequence)
    return Dataset(
        name="sample",
        users=tuple(f"shopper{user + 1:04d}" for user in range(NUM_USERS)),
        items=tuple(product.code for product in catalogue.products),
        item_texts=tuple(
            item_text(
                {
                    "title": product.title,
                    "brand": product.brand,
                    "categories": product.categories,
                    "description": product.description,
                }
            )
            for product in catalogue.products
        ),
        sequences=tuple(sequences),
    )


def sample_tokenizer() -> Tokenizer:
    """The small lower-casing Unigram tokenizer that `make_sample_tokenizer.py` made from the catalogue's own text."""
    serialised = (resources.files("idgenrec_jax.data") / TOKENIZER_FILE).read_text(encoding="utf-8")
    return Tokenizer.from_json(serialised)


def _make_catalogue() -> _Catalogue:
    """All products in a fixed order: devices with what belongs to them, everyday goods, series, seasonal lines."""
    catalogue = _Catalogue()
    for category, devices in DEVICES.items():
        catalogue.devices[category] = [
            _add_device(catalogue, category, BRANDS[category][index // 2], words) for index, words in enumerate(devices)
        ]
        catalogue.everyday[category] = [
            catalogue.add(
                f"{brand} {good}",
                brand,
                f"{category}, Basics",
                f"Sturdy everyday {good.lower()} from the {brand} range.",
            )
            for index, good in enumerate(EVERYDAY[category])
            for brand in [BRANDS[category][index // 4]]
        ]
    for brand, kind, name, about, volumes in SERIES:
        indices = [
            catalogue.add(
                f"{name} {number}: {volume}",
                brand,
                kind,
                f"{_ORDINALS[number - 1]} part of the {name} series: {about}.",
            )
            for number, volume in enumerate(volumes, 1)
        ]
        catalogue.series.setdefault(brand, []).append(indices)
    for brand, good, motifs in SEASONAL:
        indices = [
            catalogue.add(
                f"{brand} {season} {good}: {motif}",
                brand,
                f"Seasonal, {season}",
                f"{season} edition of the {good.lower()} in {motif.lower()}.",
            )
            for season, motif in zip(SEASONS, motifs, strict=True)
        ]
        catalogue.seasonal.setdefault(brand, []).append(indices)
    return catalogue


def _add_device(catalogue: _Catalogue, category: str, brand: str, words: Sequence[str]) -> list[int]:
    """A device, its two accessories and its refill."""
    model, noun, purpose, first, second, refill = words
    device = f"{model} {noun}"
    fits = f"Made to fit the {brand} {device}."
    return [
        catalogue.add(f"{brand} {device}", brand, f"{category}, Devices", f"{noun} that {purpose}."),
        catalogue.add(f"{first} for {device}", brand, f"{category}, Accessories", fits),
        catalogue.add(f"{second} for {device}", brand, f"{category}, Accessories", fits),
        catalogue.add(f"{refill} for {device}", brand, f"{category}, Refills", f"Refill for the {brand} {device}."),
    ]


def _make_sequence(catalogue: _Catalogue, stream: random.Random) -> list[int]:
    """The purchases of one shopper in order."""
    shopper = _make_shopper(catalogue, stream)
    length = SHORTEST_SEQUENCE + int(stream.random() * (LONGEST_SEQUENCE - SHORTEST_SEQUENCE + 1))
    purchases: list[int] = []
    while len(purchases) < length:
        if shopper.habits and stream.random() < _GO_ON:
            newest = stream.random() < _NEWEST_HABIT
            chosen = len(shopper.habits) - 1 if newest else int(stream.random() * len(shopper.habits))
            habit = shopper.habits.pop(chosen)
        else:
            habit = _begin_habit(catalogue, shopper, stream)
        purchases.append(habit[0])
        if habit[1:]:
            shopper.habits.append(habit[1:])
    return purchases


def _make_shopper(catalogue: _Catalogue, stream: random.Random) -> _Shopper:
    """Draws the tastes of one shopper."""
    return _Shopper(
        categories=_draw_taste(list(BRANDS), stream),
        favourite_brand={category: int(stream.random() * 3) for category in BRANDS},
        authors=_draw_taste(list(catalogue.series), stream),
        seasonal_brands=_draw_taste(list(catalogue.seasonal), stream),
    )


def _draw_taste(options: Sequence[str], stream: random.Random) -> tuple[str, str, str]:
    """Two different options, the first one twice: a uniform draw from the triple favours it."""
    first = int(stream.random() * len(options))
    second = int(stream.random() * (len(options) - 1))
    return options[first], options[first], options[second + (second >= first)]


def _begin_habit(catalogue: _Catalogue, shopper: _Shopper, stream: random.Random) -> list[int]:
    """The products of a new habit in the order of buying them; an everyday good is a habit of one."""
    draw = stream.random
    kind = draw()
    if kind < 0.22:
        lines = catalogue.series[shopper.authors[int(draw() * 3)]]
        line = lines[int(draw() * len(lines))]
        # Some have read the first volumes already, so that late volumes are no rarer than early ones.
        return line[int(draw() * 5) :]
    if kind < 0.34:
        lines = catalogue.seasonal[shopper.seasonal_brands[int(draw() * 3)]]
        line = lines[int(draw() * len(lines))]
        season = int(draw() * len(SEASONS))
        return line[season:] + line[:season]
    category = shopper.categories[int(draw() * 3)]
    brand = shopper.favourite_brand[category] if draw() < _FAVOURITE_BRAND else int(draw() * 3)
    if kind < 0.74:
        device, first, second, refill = catalogue.devices[category][2 * brand + int(draw() * 2)]
        habit = [device, first]
        habit += [] if draw() < _SKIP_SECOND_ACCESSORY else [second]
        habit += [refill]
        habit += [refill] if draw() < _BUY_REFILL_AGAIN else []
        return habit[1:] if draw() < _OWNS_DEVICE else habit
    return [catalogue.everyday[category][4 * brand + int(draw() * 4)]]
