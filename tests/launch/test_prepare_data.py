"""The program launch.prepare_data, run as a user runs it."""

import subprocess
import sys

import pytest

from idgenrec_jax.data.dataset import load_dataset


def prepare(*arguments):
    command = [sys.executable, "-m", "launch.prepare_data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "ratings.csv").write_text("1,7,4.0,5\n1,8,4.0,5\n1,9,1.0,6\n2,7,5.0,1\n")
    (folder / "movies.csv").write_text("7,Alien (1979),Horror\n8,Plain (1990),Drama\n9,Low (2000),Drama\n")
    return folder


def test_it_makes_a_data_folder_and_says_how_ties_were_broken(raw, tmp_path):
    output = tmp_path / "movies"
    result = prepare("--source=movielens", f"--input={raw}", f"--output={output}", "--core=1", "--min_rating=4")
    assert result.returncode == 0, result.stderr
    assert f"{output}: 2 users, 2 items, 3 of 4 interactions" in result.stdout
    assert "2 of them share user and timestamp with another" in result.stdout and "hash" in result.stdout
    assert "0 exact repeats (same user, item and time) dropped; 0 repeats" in result.stdout
    assert load_dataset(output).num_interactions == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=movielens", "--output=out"], "--input"),
        (["--source=movielenz", "--input=raw", "--output=out"], "movielens"),
        (["--source=amazon", "--input=no/such/folder", "--output=out"], "--input=no/such/folder: no such folder"),
        (["--source=amazon", "--input=raw", "--output=out", "--cores=3"], "--core"),
        (["--source=amazon", "--input=raw", "--output=out", "--duplicates=all"], "keep|first|last"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message):
    result = prepare(*arguments)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
