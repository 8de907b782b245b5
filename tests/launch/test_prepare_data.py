"""The program launch.prepare_data: as a user runs it, and its flags in this process."""

import datetime
import json
import re
import shlex
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from absl import flags
from file_server import Served, file_server

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.errors import InputError


def run(*arguments):
    command = [sys.executable, "-m", "launch.prepare_data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def call(monkeypatch):
    """Calls the program with flags, parsed as on the command line."""
    from idgenrec_jax.launch import prepare_data

    def parse_and_run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_data", *map(str, arguments)])
        flags.FLAGS(sys.argv)
        try:
            prepare_data.main()
        finally:
            flags.FLAGS.unparse_flags()
            for module_flags in flags.FLAGS.flags_by_module_dict()[prepare_data.__name__]:
                module_flags.unparse()

    return parse_and_run


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.0,5\n1,8,4.0,5\n1,9,1.0,6\n2,7,5.0,1\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n7,Alien (1979),Horror\n8,Plain,Drama\n9,Low,Drama\n")
    return folder


CORE = ("--user_core=1", "--item_core=1")


def test_it_makes_a_data_folder_and_says_what_it_did(raw, tmp_path):
    output = tmp_path / "movies"
    result = run(f"--input={raw}", f"--output={output}", *CORE, "--min_rating=4", "--bad_lines=skip")
    assert result.returncode == 0, result.stderr
    assert f"{output}: 2 users, 2 items, 3 of 4 interactions (--user_core=1 --item_core=1)" in result.stdout
    assert "2 of them share user and time with another" in result.stdout and "hash" in result.stdout
    assert "0 exact repeats (same user, item and time; 0.0%) dropped; 0 repeats" in result.stdout
    assert "read 4, rated 3, in time 3, " in result.stdout
    assert load_dataset(output).num_interactions == 3
    command = json.loads((output / "dataset_card.json").read_text())["command"]
    assert command == shlex.join(
        ["python", "-m", "launch.prepare_data", f"--input={raw}", f"--output={output}", *CORE, "--min_rating=4",
         "--bad_lines=skip"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=no/such/folder", "--output=out"], "--input=no/such/folder: no such file or folder"),
        (["--input=raw", "--output=out", "--item_cores=3"], "--item_core"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


@pytest.mark.parametrize(
    "wrong",
    [
        "--source=movielenz", "--duplicates=all", "--user_core=0", "--bad_lines=ignore", "--missing_text=fill",
        "--max_characters=-1",
    ],
)  # fmt: skip
def test_values_that_flags_refuse(call, raw, tmp_path, wrong):
    with pytest.raises(flags.Error, match=wrong.partition("=")[0].strip("-")):
        call(f"--input={raw}", f"--output={tmp_path / 'out'}", wrong)


def test_every_flag_reaches_the_preparation(call, raw, tmp_path):
    output = tmp_path / "out"
    with open(raw / "ratings.csv", "a") as file:
        file.write("1,7,4.0,9\n1,7\n3,9,5.0,7\n")
    call(
        "--source=movielens", f"--input={raw / 'ratings.csv'},{raw / 'movies.csv'}", f"--output={output}",
        "--user_core=1", "--item_core=2", "--from=1", "--to=20", "--duplicates=last", "--bad_lines=skip",
        "--missing_text=drop", "--min_title_words=1", "--text_columns=title", "--max_characters=5", "--split=time:5,9",
        "--encoding=latin-1",
    )  # fmt: skip
    card = json.loads((output / "dataset_card.json").read_text())
    assert (card["user_core"], card["item_core"], card["duplicates"], card["bad_lines"]) == (1, 2, "last", 1)
    assert (card["text_fields"], card["split"]["moments"], card["repeats"]) == (["title"], [5, 9], 1)
    assert card["interactions_by_filter"]["with text"] == 5
    assert (output / "items.jsonl").read_text() == '{"id": "7", "title": "Alien"}\n{"id": "9", "title": "Low"}\n'
    assert list(map(json.loads, (output / "user_sequence.jsonl").read_text().splitlines())) == [
        {"user": "1", "items": ["9", "7"], "train": 0, "validation": 1},
        {"user": "2", "items": ["7"], "train": 1, "validation": 0},
        {"user": "3", "items": ["9"], "train": 0, "validation": 1},
    ]


def test_flags_of_tables_are_refused_elsewhere(call, raw, tmp_path):
    with pytest.raises(InputError, match="--user_column.*--source=table"):
        call("--source=movielens", f"--input={raw}", f"--output={tmp_path / 'out'}", "--user_column=userId")


ITEMS = "product_id,title\na,Pen\nb,Ink\n"
MOMENTS = (1_600_000_000, 1_600_000_300, 1_600_000_100)
EVENTS = [("Ann", "a"), ("Ann", "b"), ("Bo", "a")]


def write_csv(folder):
    times = [datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat() for moment in MOMENTS]
    rows = [f"{user},{item},{time}\n" for (user, item), time in zip(EVENTS, times, strict=True)]
    (folder / "purchase log.csv").write_text("user_id,product_id,created_at\n" + "".join(rows))
    (folder / "items.csv").write_text(ITEMS)


def write_tsv(folder):
    rows = [f"{user}\t{item}\t{moment}\t1.5\n" for (user, item), moment in zip(EVENTS, MOMENTS, strict=True)]
    (folder / "log.tsv").write_text("".join(rows))


def write_json(folder):
    rows = [
        {"order": 7, "customer": user, "article": item, "ts": moment * 1000}
        for (user, item), moment in zip(EVENTS, MOMENTS, strict=True)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "articles.jsonl").write_text('{"article": "a", "name": "Pen"}\n{"article": "b", "name": "Ink"}\n')


def write_parquet(folder):
    users, items = zip(*EVENTS, strict=True)
    moments = [datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in MOMENTS]
    log = pyarrow.table({"reviewer": users, "movie": items, "date": moments})
    pyarrow.parquet.write_table(log, folder / "log.parquet")
    (folder / "movies.tsv").write_text(ITEMS.replace(",", "\t").replace("product_id", "id"))


@pytest.mark.parametrize(
    ("write", "has_texts"), [(write_csv, True), (write_tsv, False), (write_json, True), (write_parquet, True)]
)
def test_a_proposed_command_works_as_it_is(call, tmp_path, write, has_texts):
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw)
    with pytest.raises(InputError) as caught:
        call(f"--input={raw}", f"--output={tmp_path / 'out'}")
    (proposed,) = re.findall("--source=table --input=.*|--source=table '--input=.*", str(caught.value))
    call(*shlex.split(proposed), f"--output={tmp_path / 'out'}", *CORE)
    assert (tmp_path / "out" / "user_sequence.txt").read_text() == "Ann a b\nBo a\n"
    card = json.loads((tmp_path / "out" / "dataset_card.json").read_text())
    assert (card["source"], card["order"], card["items_without_text"]) == ("table", "time", 0 if has_texts else 2)
    # One second before the last event: the times were read as what they are.
    call(*shlex.split(proposed), f"--output={tmp_path / 'early'}", *CORE, f"--to={MOMENTS[1]}")
    assert (tmp_path / "early" / "user_sequence.txt").read_text() == "Ann a\nBo a\n"


def test_a_download_is_fetched_and_prepared_and_the_card_says_where_it_is_from(call, tmp_path, monkeypatch):
    from idgenrec_jax.data.download import Download, RemoteFile
    from idgenrec_jax.launch import prepare_data

    monkeypatch.setenv("no_proxy", "*")
    with file_server() as server:
        bodies = {
            "ratings.csv": b"userId,movieId,rating,timestamp\n1,7,4.0,5\n",
            "movies.csv": b"7,Alien (1979),Horror\n",
        }
        for name, body in bodies.items():
            server.files[f"/{name}"] = Served(body)
        files = tuple(RemoteFile(f"{server.address}/{name}", name) for name in bodies)
        download = Download("tiny", "movielens", files, "https://example.org", "none")
        monkeypatch.setattr(prepare_data, "DOWNLOADS", {"tiny": download})
        call("--download=tiny", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'made'}", "--core=1")
        # Without the flag nothing is fetched.
        server.log.clear()
        call(f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'again'}", "--core=1")
        assert server.log == []
    card = json.loads((tmp_path / "made" / "dataset_card.json").read_text())
    addresses = {name: record["address"] for name, record in card["downloaded"].items()}
    assert addresses == {name: f"{server.address}/{name}" for name in bodies}
    assert card["source"] == "movielens" and load_dataset(tmp_path / "made").item_texts == (
        "title: Alien (1979); categories: Horror",
    )
    with pytest.raises(InputError, match="--download: found 'tinz', expected one of tiny; nearest: tiny"):
        call("--download=tinz", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'other'}")
    with pytest.raises(InputError, match="--download=tiny: expected --input=FOLDER"):
        call("--download=tiny", f"--output={tmp_path / 'other'}")


def test_it_starts_without_jax():
    code = "import sys, idgenrec_jax.launch.prepare_data; print({'jax', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
