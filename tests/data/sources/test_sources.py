"""The table of raw formats, and one more format added to it the way a contributor would."""

from importlib import import_module

from idgenrec_jax.data import sources
from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare

NEW_FORMAT = """
from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.source import NO_ITEMS, RawData, Source
from idgenrec_jax.data.sources.tables import InteractionColumns, interactions_of, items_of, text

FORM = Form("csv", ("user", "song", "time", "name"), "\\t", quoted=False)


def recognise(files):
    plays = [file for file in files if file.name == "plays.tsv"]
    if not plays:
        return None
    path = plays[0].path
    interactions = interactions_of([path], FORM, InteractionColumns("user", "song", "time"))
    return RawData(interactions, items_of(path, FORM, "song", {"title": text("name")}), "plays.tsv", [path])


SOURCE = Source("plays of songs", "plays.tsv", recognise)
"""


def test_every_format_says_in_a_line_what_it_is():
    assert {"amazon", "movielens"} <= set(sources.SOURCES)
    for source in sources.SOURCES.values():
        for text in (source.help, source.expects, source.licence):
            assert text and "\n" not in text


def test_a_format_is_one_file_and_one_line(tmp_path, monkeypatch):
    (tmp_path / "plays.py").write_text(NEW_FORMAT)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    monkeypatch.setitem(sources.SOURCES, "plays", import_module(f"{sources.__name__}.plays").SOURCE)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "plays.tsv").write_text('u\tb\t2\t"B\nu\ta\t1\tA\nu\ta\t1\tA\nv\ta\t5\tA\n')
    made = prepare("auto", [raw], tmp_path / "out", Filters(user_core=1, item_core=1))
    assert (made.source, made.interactions, made.exact_repeats) == ("plays", 3, 1)
    dataset = load_dataset(tmp_path / "out")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 1], [0]]
    assert dataset.item_texts == ("title: A", 'title: "B')
