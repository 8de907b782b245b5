"""Raw formats, one file each; `preparation.py` makes the data folder that `dataset.py` reads from any of them.

A format is added by a file here that ends in `SOURCE = Source(...)`, and by its name in the table below.
"""

from importlib import import_module

from idgenrec_jax.data.sources.source import Source

SOURCES: dict[str, Source] = {
    name: import_module(f"{__name__}.{name}").SOURCE
    for name in (
        "amazon",
        "movielens",
        "yelp",
        "steam",
        "goodreads",
        "google_local",
        "hm",
        "lastfm",
        "gowalla",
        "recbole",
        "letter",
        "mind",
        "idgenrec",
    )
}
