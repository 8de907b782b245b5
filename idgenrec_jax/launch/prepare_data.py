"""Make a data folder: python -m launch.prepare_data --source=auto --input=PATH[,PATH] --output=DIR."""

import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags, logging

from idgenrec_jax.data.download import fetch, read_record
from idgenrec_jax.data.publishers import DOWNLOADS
from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.data_folder import check_output
from idgenrec_jax.data.sources.filters import DUPLICATES
from idgenrec_jax.data.sources.preparation import CORE, MISSING_TEXT, Filters, prepare
from idgenrec_jax.data.sources.recognition import AUTO, TABLE
from idgenrec_jax.data.sources.table import TableFlags
from idgenrec_jax.data.sources.values import BAD_LINES
from idgenrec_jax.errors import InputError, look_up
from idgenrec_jax.files import expand_home
from idgenrec_jax.launch.command_line import define_path, refuse_without, run

_FORMATS = "; ".join(f"{name}: {source.help}" for name, source in sorted(SOURCES.items()))

_SOURCE = flags.DEFINE_enum(
    "source", AUTO, [AUTO, TABLE, *sorted(SOURCES)],
    f"raw format; {AUTO} recognises it, {TABLE} is any file with columns of users and items; {_FORMATS}",
)  # fmt: skip
_INPUT = flags.DEFINE_list("input", [], "raw files or folders of them, .gz or unpacked; the folder of a --download")
_DOWNLOAD = flags.DEFINE_string("download", "", "public data to fetch to where --input says, such as ml-1m")
_OUTPUT = define_path("output", None, "data folder to make, new or empty", required=True)
_CORE = flags.DEFINE_integer("core", None, "both --user_core and --item_core, where these are not given", lower_bound=1)
_USER_CORE = flags.DEFINE_integer("user_core", None, f"interactions a user needs to stay; {CORE}", lower_bound=1)
_ITEM_CORE = flags.DEFINE_integer("item_core", None, f"interactions an item needs to stay; {CORE}", lower_bound=1)
_MIN_RATING = flags.DEFINE_float("min_rating", 0.0, "lowest rating that counts; 0: all count, also what has none")
_FROM = flags.DEFINE_string("from", "", "interactions count from this moment on: a date, or seconds since 1970")
_TO = flags.DEFINE_string("to", "", "interactions count before this moment")
_DUPLICATES = flags.DEFINE_enum(
    "duplicates", None, DUPLICATES,
    "which of a user's interactions with one item at different times count: the first, the last or all (keep); those "
    f"with equal user, item and time are one in any case; {DUPLICATES[0]}",
)  # fmt: skip
_MISSING_TEXT = flags.DEFINE_enum("missing_text", MISSING_TEXT[0], MISSING_TEXT, "what becomes of items without text")
_MIN_TITLE_WORDS = flags.DEFINE_integer("min_title_words", 0, "words that an item's title needs", lower_bound=0)
_BAD_LINES = flags.DEFINE_enum("bad_lines", BAD_LINES[0], BAD_LINES, "what faulty records do")
_SPLIT = flags.DEFINE_string(
    "split", "", "leave_one_out, given (the publisher's) or time:T1,T2; given where there is one, else leave_one_out"
)
_TEXT_COLUMNS = flags.DEFINE_list("text_columns", [], "fields of an item's text, COLUMN or NAME=COLUMN")
_MAX_CHARACTERS = flags.DEFINE_integer("max_characters", 0, "characters kept of a field; 0: all", lower_bound=0)
_ENCODING = flags.DEFINE_string("encoding", "", "encoding of the raw texts, such as latin-1, where it is not UTF-8")

_TABLE_FLAGS: dict[str, flags.FlagHolder[Any]] = {
    "user_column": flags.DEFINE_string("user_column", "", "table: column of users; a number without --header"),
    "item_column": flags.DEFINE_string("item_column", "", "table: column of items"),
    "time_column": flags.DEFINE_string("time_column", "", "table: column of times; without it rows are in order"),
    "time_unit": flags.DEFINE_string("time_unit", "s", "table: s, ms, us, iso, or a format such as %d.%m.%Y"),
    "rating_column": flags.DEFINE_string("rating_column", "", "table: column of ratings"),
    "items": define_path("items", "", "table: file that describes the items"),
    "item_key": flags.DEFINE_string("item_key", "", "table: column of --items that holds the items' keys"),
    "separator": flags.DEFINE_string("separator", "", "table: what separates columns, as ; or tab; found if blank"),
    "header": flags.DEFINE_bool("header", True, "table: whether the first line names the columns"),
    "quoted": flags.DEFINE_bool("quoted", None, "table: whether values may be quoted; with , or ; they may"),
}


def main() -> None:
    """Convert, and say what came out, what was dropped and how ties in time were broken."""
    if _SOURCE.value != TABLE:
        refuse_without(f"--source={TABLE}", _TABLE_FLAGS)
    given: dict[str, Any] = {name: flag.value for name, flag in _TABLE_FLAGS.items()}
    inputs, downloaded = _fetch() if _DOWNLOAD.value else (_INPUT.value, {})
    if not inputs:
        raise InputError("--input: missing; expected raw files or a folder of them")
    card = prepare(
        _SOURCE.value,
        inputs,
        _OUTPUT.value,
        Filters(
            min_rating=_MIN_RATING.value,
            since=_FROM.value,
            until=_TO.value,
            duplicates=_DUPLICATES.value,
            missing_text=_MISSING_TEXT.value,
            min_title_words=_MIN_TITLE_WORDS.value,
            user_core=_USER_CORE.value or _CORE.value,
            item_core=_ITEM_CORE.value or _CORE.value,
            split=_SPLIT.value,
            bad_lines=_BAD_LINES.value,
            text_columns=tuple(_TEXT_COLUMNS.value),
            max_characters=_MAX_CHARACTERS.value,
            encoding=_ENCODING.value,
        ),
        table=TableFlags(**given | {"text_columns": tuple(_TEXT_COLUMNS.value), "items": expand_home(given["items"])}),
        command=shlex.join(["python", "-m", "launch.prepare_data", *sys.argv[1:]]),
        downloaded=downloaded,
        progress=True,
    )
    print(f"{_OUTPUT.value}: {card.summary()}")


def _fetch() -> tuple[list[str], dict[str, Any]]:
    """The files that --download names, in the --input folder, and where each is from."""
    download = look_up(DOWNLOADS, _DOWNLOAD.value, "--download")
    if len(_INPUT.value) != 1:
        raise InputError(f"--download={download.name}: expected --input=FOLDER, the one to fetch into")
    check_output(Path(_OUTPUT.value))
    logging.info("--download=%s: %s; %s", download.name, download.page, download.licence)
    paths = fetch(download, _INPUT.value[0])
    names = {file.name for file in download.files}
    record = read_record(_INPUT.value[0])
    return [str(path) for path in paths], {name: record[name] for name in names if name in record}


if __name__ == "__main__":
    run(main)
