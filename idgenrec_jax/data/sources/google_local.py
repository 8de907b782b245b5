"""Google Local (2021): reviews of places, in milliseconds, and the places themselves."""

from collections.abc import Sequence

from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import RawData, Source
from idgenrec_jax.data.sources.tables import InteractionColumns, enumeration, open_log, text

_COLUMNS = InteractionColumns("user_id", "gmap_id", "time", "ms", "rating")
_FIELDS = {
    "title": text("name"),
    "categories": enumeration("category"),
    "description": text("description"),
    "address": text("address", default=False),
}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the reviews of Google Local, and the places where they are there."""
    return open_log(files, Form("json"), _COLUMNS, _FIELDS)


SOURCE = Source(
    "Google Local reviews of 2021",
    "the file of reviews (user_id, gmap_id, time, rating) and perhaps that of places (gmap_id, name)",
    recognise,
    "research use; cite Li et al. 2022 and Yan et al. 2023",
)
