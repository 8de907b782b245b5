"""Lines of `USER ITEM ITEM ...`: the folders of IDGenRec and OpenP5, with texts, and S3-Rec's files, without."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from idgenrec_jax.data.sources.rows import Form, Reading, Rows
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import NO_ITEMS, Items, RawData, Source
from idgenrec_jax.data.sources.tables import items_of, sequences_of, text
from idgenrec_jax.data.sources.texts import joined, known_brand
from idgenrec_jax.data.sources.values import key_of

_SEQUENCES_FILE, _TEXT_FILE = "user_sequence.txt", "item_plain_text.txt"
_SEQUENCES = Form("words", ("user", "items"))
_TEXTS = Form("words", ("item", "text"))
# A semicolon that a name and a colon follow begins a field; a title may hold other semicolons.
_NEXT_FIELD = re.compile(r";(?=[^:;]+: )")
_NAME = re.compile(r"[A-Za-z][\w ]{0,29}")
_RENAMED = {"category": "categories"}
_CLEANED = {"brand": lambda value: known_brand(joined(value))}


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open sequences, and the texts and published IDs that lie beside them: their names tell which is which."""
    by_name = {file.name: file for file in files}
    sequences = by_name.get(_SEQUENCES_FILE) or _only_sequences(files)
    if sequences is None or sequences.kind not in ("lines", "csv"):
        return None
    notes = ["the order of each sequence is taken as given; launch.check_data says whether it looks like that of time"]
    for file in files:
        if file.name.startswith("item_generative_indexing"):
            notes.append(f"{file.path} holds published IDs and is not read; --config.ids.table={file.path} takes it")
    items, described = NO_ITEMS, []
    records = [file for file in files if file.kind == "json" and file.has("id") and len(file.fields) > 1]
    if _TEXT_FILE in by_name:
        items, described = _plain_texts(by_name[_TEXT_FILE]), [by_name[_TEXT_FILE].path]
    elif len(records) == 1:
        fields = {name: text(name) for name in records[0].fields if name != "id"}
        items, described = items_of(records[0].path, Form("json"), "id", fields), [records[0].path]
    return RawData(
        sequences_of(sequences.path, _SEQUENCES, ("user", "items"), str.split),
        items,
        f"{sequences.path.name} has lines of a user and items, as the files of IDGenRec and S3-Rec",
        [sequences.path, *described],
        has_times=False,
        notes=notes,
    )


def _only_sequences(files: Sequence[RawFile]) -> RawFile | None:
    """The one file that can only be sequences: each line begins with another key, and lines differ in length.

    S3-Rec's X_sample.txt has the same form: 99 items that a user has not bought, for ranking.
    """
    found = [file for file in files if _looks_like_sequences(file) and not file.name.endswith("_sample.txt")]
    return found[0] if len(found) == 1 else None


def _looks_like_sequences(file: RawFile) -> bool:
    if file.kind != "lines" or len({len(row) for row in file.rows}) == 1:
        return False
    users = [row[0] for row in file.rows]
    has_digits = all(any(map(str.isdigit, word)) for row in file.rows for word in row)
    return has_digits and len(set(users)) == len(users) and all(len(row) > 1 for row in file.rows)


def _plain_texts(file: RawFile) -> Items:
    """The items of `ITEM name: value; name: value` lines, or of lines with any text."""
    names = _names_of_fields(file)

    def read(reading: Reading, wanted: Set[str], asked: Collection[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        def parse(item: str, line: str) -> tuple[str, dict[str, str]]:
            item = key_of(item, "item")
            return item, _fields_of(line, names) if item in wanted else {}

        for item, texts in Rows(file.path, _TEXTS, ("item", "text"), reading).parsed(parse):
            if texts:
                plain = {name: _CLEANED.get(name, joined)(texts[name]) for name in asked if name in texts}
                yield item, {name: value for name, value in plain.items() if value}

    return Items(dict.fromkeys([*(_RENAMED.get(name, name) for name in names), "text"], True), read)


def _names_of_fields(file: RawFile) -> list[str]:
    """The names that stand before a colon in at least half of the first lines."""
    found: Counter[str] = Counter()
    for row in file.rows:
        line = (file.separator or " ").join(row).partition(" ")[2]
        parts = [part for part in _NEXT_FIELD.split(line) if ": " in part]
        found.update(list(dict.fromkeys(part.partition(": ")[0].strip() for part in parts)))
    return [name for name, count in found.items() if 2 * count >= len(file.rows) and _NAME.fullmatch(name)]


def _fields_of(line: str, names: Collection[str]) -> dict[str, str]:
    """The fields of a line; a part without a known name belongs to the field before it."""
    fields: dict[str, str] = {}
    current = "text"
    for part in _NEXT_FIELD.split(line):
        name, colon, value = part.partition(": ")
        if colon and name.strip() in names:
            current, part = _RENAMED.get(name.strip(), name.strip()), value
        fields[current] = f"{fields[current]};{part}" if current in fields else part
    return fields


SOURCE = Source(
    "sequences as IDGenRec, OpenP5 and S3-Rec have them",
    f"{_SEQUENCES_FILE}, USER ITEM ITEM ... a line (S3-Rec's X.txt, too), and perhaps {_TEXT_FILE}, ITEM text a line",
    recognise,
    "that of the data set they were made from",
)
