"""Last.fm of HetRec 2011: when users gave artists tags, or how often they heard them, and the names of artists.

Tags are given by the users whose events are predicted. They are no text of the artists here.
"""

from collections.abc import Sequence

from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, RawData, Source
from idgenrec_jax.data.sources.tables import InteractionColumns, interactions_of, items_of, only, text

_FORM = Form("csv", None, "\t", quoted=False)
_TAGGED = InteractionColumns("userID", "artistID", "timestamp", "ms")
_HEARD = InteractionColumns("userID", "artistID")


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the tags with their times, or else the artists that users heard, and the artists' names."""
    tables = [file for file in files if file.separator == _FORM.separator]
    tagged = only([file for file in tables if file.has("userID", "artistID", "timestamp")], "tags with times")
    heard = only([file for file in tables if file.has("userID", "artistID", "weight")], "artists that users heard")
    log = tagged or heard
    if log is None:
        return None
    artists = only([file for file in tables if file.has("id", "name", "pictureURL")], "artists")
    items = items_of(artists.path, _FORM, "id", {"title": text("name")}) if artists else NO_ITEMS
    paths = [file.path for file in (log, artists) if file]
    if tagged is None:
        reason = f"{log.path.name} has userID, artistID, weight"
        note = f"{log.path.name} has no times: a user's artists stand as in the file, which is no order of time"
        return RawData(interactions_of([log.path], _FORM, _HEARD), items, reason, paths, has_times=False, notes=[note])
    notes = ["an interaction is a tag that a user gave an artist, at the time when it was given"]
    if heard:
        notes.append(f"{heard.path.name} is not read: it has no times")
    reason = f"{log.path.name} has userID, artistID, timestamp"
    return RawData(interactions_of([log.path], _FORM, _TAGGED), items, reason, paths, notes=notes)


SOURCE = Source(
    "Last.fm (HetRec 2011)",
    "user_taggedartists-timestamps.dat (userID, artistID, timestamp) or user_artists.dat (userID, artistID, weight), "
    "and perhaps artists.dat (id, name)",
    recognise,
    "non-commercial use; cite Cantador et al. 2011 and Last.fm",
)
