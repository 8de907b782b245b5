"""Amazon reviews of 2014, 2018 and 2023: with metadata, as ratings only, and as the splits published for 2023."""

import re
from collections.abc import Sequence
from typing import Any

from idgenrec_jax.data.lines import leaves
from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Items, RawData, Source
from idgenrec_jax.data.sources.tables import Field, InteractionColumns, interactions_of, items_of, text
from idgenrec_jax.data.sources.texts import joined, known_brand, listed

_JSON = Form("json")
_OF_2014 = InteractionColumns("reviewerID", "asin", "unixReviewTime", "s", "overall")
_OF_2023 = InteractionColumns("user_id", "parent_asin", "timestamp", "ms", "rating")
_LAYOUTS = ((_OF_2014, "2014 or 2018"), (_OF_2023, "2023"))
_SPLITS = ("train", "valid", "test")
_ASIN = re.compile(r"(B0|\d)[0-9A-Z]{8,9}")

# What the pages of 2018 left in the records: their scripts as titles, "by" before a brand, what follows the categories.
_PAGE_SCRIPT = re.compile(r"getTime\(\)|\bue_t0\b|\bwindow\.\w+\s*=|^\s*var \w+\s*=")
_BY = re.compile(r"\s*by\b\s*[\r\n]\s*")
_AUTHOR_PAGE = re.compile(r"Visit Amazon's (.+) Page")
_LONGEST_PRICE = 40


def _title(value: Any) -> str:
    return "" if isinstance(value, str) and _PAGE_SCRIPT.search(value) else joined(value)


def _brand(value: Any) -> str:
    brand = joined(_BY.sub("", value, count=1) if isinstance(value, str) else value)
    return known_brand(_AUTHOR_PAGE.sub(r"\1", brand))


def _categories(nested: Any, flat: Any) -> str:
    """The categories; in 2018 what follows a closing span are features."""
    kept = []
    for part in leaves(nested or flat):
        if isinstance(part, str) and "</span>" in part:
            break
        kept.append(part)
    return listed(kept)


def _price(value: Any) -> str:
    """A price; some records of 2018 hold a style sheet there."""
    price = joined(value)
    return price if len(price) <= _LONGEST_PRICE and any(map(str.isdigit, price)) else ""


_FIELDS_TO_2018 = {
    "title": Field(("title",), _title),
    "brand": Field(("brand",), _brand),
    "categories": Field(("categories", "category"), _categories),
    "description": text("description"),
    "features": text("feature", default=False),
    "price": Field(("price",), _price, default=False),
    "date": text("date", default=False),
}


def _brand_of_2023(details: Any, store: Any) -> str:
    return _brand(details.get("Brand") or store) if isinstance(details, dict) else _brand(store)


def _author(value: Any) -> str:
    return joined(value.get("name")) if isinstance(value, dict) else joined(value)


def _date_of_2023(details: Any) -> str:
    if not isinstance(details, dict):
        return ""
    return joined(details.get("Date First Available") or details.get("Publication date"))


_FIELDS_OF_2023 = {
    "title": text("title"),
    "subtitle": text("subtitle"),
    "author": Field(("author",), _author),
    "brand": Field(("details", "store"), _brand_of_2023),
    "categories": Field(("categories", "main_category"), lambda listing, main: listed(listing) or joined(main)),
    "description": text("description"),
    "features": text("features"),
    "price": Field(("price",), _price, default=False),
    "date": Field(("details",), _date_of_2023, default=False),
}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open Amazon files: one file of reviews or ratings (or a split in three), and perhaps one of metadata."""
    metadata = [file for file in files if _is_metadata(file)]
    others = [file for file in files if file not in metadata]
    if len(metadata) > 1:
        return None
    items = _items(metadata[0]) if metadata else NO_ITEMS
    paths = [file.path for file in metadata]
    reviews = [(file, *layout) for file in others for layout in _LAYOUTS if _holds(file, layout[0])]
    if len(reviews) > 1:
        return None
    if not reviews:
        return _ratings([file for file in others if file.kind == "csv"], items, paths)
    ((file, columns, year),) = reviews
    left_out = [other.path.name for other in others if other is not file]
    return RawData(
        interactions_of([file.path], _JSON, columns),
        items,
        f"{file.path.name} has {columns.user}, {columns.item} and {columns.time}, as the reviews of {year}",
        [file.path, *paths],
        notes=[f"{file.path.name} is read, and not {', '.join(left_out)} beside it"] if left_out else [],
    )


def _holds(file: RawFile, columns: InteractionColumns) -> bool:
    return file.kind == "json" and file.has(columns.user, columns.item, str(columns.time))


def _ratings(files: list[RawFile], items: Items, paths: list) -> RawData | None:
    if not files or any(file.separator != "," for file in files):
        return None
    if all(file.has("user_id", "parent_asin", "timestamp") for file in files):
        ordered = [file for split in _SPLITS for file in files if file.name.endswith(f".{split}.csv")]
        if len(files) == 1 or len(ordered) == len(files) == len(_SPLITS):
            ordered = ordered if len(files) > 1 else files
            return RawData(
                interactions_of([file.path for file in ordered], Form("csv"), _OF_2023),
                items,
                f"{ordered[0].path.name} has the columns user_id, parent_asin and timestamp of 2023",
                [*(file.path for file in ordered), *paths],
                has_split=len(files) > 1,
            )
    if len(files) == 1 and files[0].width == 4:
        return _headless(files[0], items, paths)
    return None


def _headless(file: RawFile, items: Items, paths: list) -> RawData | None:
    """Ratings without a header: user, item, rating, time in 2014; item, user, rating, time in 2018."""
    rows = file.regular_rows
    shares = [sum(bool(_ASIN.fullmatch(row[place])) for row in rows) / len(rows) for place in (0, 1)]
    numbers = sum(row[3].isdigit() and row[2].replace(".", "", 1).isdigit() for row in rows)
    if numbers < 0.8 * len(rows) or max(shares) < 0.8 or shares[0] == shares[1]:
        return None
    item_first = shares[0] > shares[1]
    names = ("item", "user", "rating", "time") if item_first else ("user", "item", "rating", "time")
    order = "item, user, rating, time, as in 2018" if item_first else "user, item, rating, time, as in 2014"
    return RawData(
        interactions_of([file.path], Form("csv", names), InteractionColumns("user", "item", "time", "s", "rating")),
        items,
        f"{file.path.name} has {order}: the {'first' if item_first else 'second'} column holds product numbers",
        [file.path, *paths],
    )


def _is_metadata(file: RawFile) -> bool:
    if file.kind != "json":
        return False
    if file.has("parent_asin"):
        return not file.has("user_id")
    return file.has("asin") and not file.has("reviewerID") and not file.has("user_id")


def _items(file: RawFile) -> Items:
    if file.has("parent_asin"):
        return items_of(file.path, _JSON, "parent_asin", _FIELDS_OF_2023)
    return items_of(file.path, _JSON, "asin", _FIELDS_TO_2018)


SOURCE = Source(
    "Amazon reviews of 2014, 2018 or 2023, with or without metadata",
    "one file of reviews or of ratings (or .train.csv, .valid.csv and .test.csv) and at most one of metadata",
    recognise,
    "research use; cite the authors of the release (He and McAuley 2016, Ni et al. 2019, Hou et al. 2024)",
)
