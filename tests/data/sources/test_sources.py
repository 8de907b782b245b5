"""The table of raw formats, and one more format added to it the way a contributor would."""

from importlib import import_module

from idgenrec_jax.data import sources
from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import prepare

NEW_FORMAT = """
from idgenrec_jax.data.lines import read_lines
from idgenrec_jax.data.sources.source import Interaction, RawData, Source, key_of, number_of


def read(folder):
    return RawData(interactions(folder / "plays.tsv"), titles)


def titles(items):
    return {item: {"title": f"Song {item}"} for item in items}


def interactions(path):
    for number, line in read_lines(path, "download it again"):
        place = f"{path}:{number}"
        user, item, time = line.split("\\t")
        user, item = key_of(user, "user", place), key_of(item, "item", place)
        yield place, Interaction(user, item, number_of(time, "time", place))


SOURCE = Source("plays of songs", read)
"""


def test_every_format_says_in_a_line_what_it_is():
    assert set(sources.SOURCES) == {"amazon", "movielens"}
    assert all(source.help and "\n" not in source.help for source in sources.SOURCES.values())


def test_a_format_is_one_file_and_one_line(tmp_path, monkeypatch):
    (tmp_path / "plays.py").write_text(NEW_FORMAT)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    monkeypatch.setitem(sources.SOURCES, "plays", import_module(f"{sources.__name__}.plays").SOURCE)
    (tmp_path / "plays.tsv").write_text("u\tb\t2\nu\ta\t1\nu\ta\t1\nv\ta\t5\n")
    made = prepare("plays", tmp_path, tmp_path / "out", core=1, min_rating=0.0)
    assert (made.interactions, made.exact_repeats) == (3, 1)
    dataset = load_dataset(tmp_path / "out")
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 1], [0]]
    assert dataset.item_texts == ("title: Song a", "title: Song b")
