"""The Yelp open dataset: reviews and the businesses that they are about; users, tips and check-ins are not read."""

from collections.abc import Sequence

from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import RawData, Source
from idgenrec_jax.data.sources.tables import InteractionColumns, enumeration, open_log, text

# Dates are days in older releases and have a time of day in later ones. Tips have no stars.
_COLUMNS = InteractionColumns("user_id", "business_id", "date", "iso", "stars")
_FIELDS = {
    "title": text("name"),
    "categories": enumeration("categories", ","),
    "city": text("city"),
    "state": text("state"),
    "address": text("address", default=False),
}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the reviews of Yelp, and the businesses where they are there."""
    return open_log(files, Form("json"), _COLUMNS, _FIELDS)


SOURCE = Source(
    "Yelp open dataset",
    "the file of reviews (user_id, business_id, stars, date) and perhaps that of businesses (business_id, name)",
    recognise,
    "Yelp Dataset Terms of Use: academic use, not redistributed",
)
