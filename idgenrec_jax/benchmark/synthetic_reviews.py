"""Made-up reviews and metadata in the form of Amazon 2018, of any size."""

import gzip
import json
from pathlib import Path

import numpy as np

_WORDS = (
    "great works bought daughter quality price fast small light easy return broke color size perfect battery case "
    "charger story author page soft hard round paper steel wood glass paint brush cable screen lamp table chair"
)
_ALPHABET = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
_TEXTS = 2000
_BLOCK = 100_000
_DAY = 86_400
_FIRST_DAY, _DAYS = 15_000, 2_800


def write_synthetic_reviews(folder: Path, reviews: int, items: int, users: int) -> None:
    """Write reviews.json.gz and meta.json.gz; some users and items are far more frequent than others, by a fixed seed.

    A review has about 400 characters of text. A record of metadata has two descriptions with markup, features and two
    lists of other products.
    """
    rng = np.random.default_rng(0)
    words = np.array(_WORDS.split())
    texts = [" ".join(rng.choice(words, rng.choice([8, 30, 120]))) for _ in range(_TEXTS)]
    keys = [f"B0{_in_letters(number * 7_919 + 1_000_003, 8)}" for number in range(items)]
    with gzip.open(folder / "reviews.json.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        for start in range(0, reviews, _BLOCK):
            count = min(_BLOCK, reviews - start)
            who = (users * rng.random(count) ** 4).astype(int)
            what = (items * rng.random(count) ** 4).astype(int)
            days, stars = rng.integers(_FIRST_DAY, _FIRST_DAY + _DAYS, count), rng.integers(1, 6, count)
            said = rng.integers(0, _TEXTS, count)
            columns = (column.tolist() for column in (who, what, days, stars, said))
            file.writelines(
                f'{{"overall": {star}.0, "verified": true, "reviewerID": "A{_in_letters(user * 104_729, 12)}", '
                f'"asin": "{keys[item]}", "style": {{"Format:": " Hardcover"}}, "reviewerName": "Reviewer", '
                f'"reviewText": "{texts[text]}", "summary": "{texts[text][:30]}", "unixReviewTime": {day * _DAY}}}\n'
                for user, item, day, star, text in zip(*columns, strict=True)
            )
    with gzip.open(folder / "meta.json.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        for number, key in enumerate(keys):
            text = texts[number % _TEXTS]
            record = {
                "category": ["Home &amp; Garden", "Tools", text.split()[0].title()],
                "description": [f"<b>{text}</b><br>", f"<!-- .style {{}} --><p>&amp; more: {text}</p>"],
                "title": f"Item {number} {text[:40]}",
                "also_buy": keys[number : number + 20],
                "brand": f"Brand {number % 5000}",
                "feature": [text[:30]] * 5,
                "also_view": keys[number : number + 10],
                "price": "$19.99",
                "asin": key,
            }
            file.write(json.dumps(record) + "\n")


def _in_letters(number: int, length: int) -> str:
    letters = []
    for _ in range(length):
        number, place = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[place])
    return "".join(reversed(letters))
