"""Check-ins as SNAP publishes them for Gowalla and Brightkite: user, time, latitude, longitude, place; no texts."""

import re
from collections.abc import Sequence

from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, RawData, Source
from idgenrec_jax.data.sources.tables import InteractionColumns, interactions_of, only

_FORM = Form("csv", ("user", "time", "latitude", "longitude", "place"), "\t", quoted=False)
_COLUMNS = InteractionColumns("user", "place", "time", "iso")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DEGREES = re.compile(r"-?\d+(\.\d+)?")
_MOSTLY = 0.8
_NOTES = ("places have no texts, and textual IDs are made from text",)


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the check-ins; the file of friends beside them is not read."""
    log = only([file for file in files if file.separator == "\t" and _holds_check_ins(file)], "check-ins")
    if log is None:
        return None
    reason = f"{log.path.name} has user, time, latitude, longitude and place with tabs between"
    return RawData(interactions_of([log.path], _FORM, _COLUMNS), NO_ITEMS, reason, [log.path], notes=_NOTES)


def _holds_check_ins(file: RawFile) -> bool:
    """Most lines do; one may be faulty."""
    return sum(map(_is_check_in, file.rows)) >= _MOSTLY * len(file.rows)


def _is_check_in(cells: Sequence[str]) -> bool:
    if len(cells) != len(_FORM.columns or ()):
        return False
    return bool(_TIME.fullmatch(cells[1]) and _DEGREES.fullmatch(cells[2]) and _DEGREES.fullmatch(cells[3]))


SOURCE = Source(
    "Gowalla and Brightkite check-ins (SNAP)",
    "loc-gowalla_totalCheckins.txt: lines of user, time, latitude, longitude and place with tabs between",
    recognise,
    "see the page at SNAP; cite Cho, Myers and Leskovec 2011",
)
