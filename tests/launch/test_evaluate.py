"""The program launch.evaluate, on the undisturbed run."""

import json
import shutil

import pytest
from program_runs import the_error

pytestmark = pytest.mark.slow


def evaluation(finished, split):
    return json.loads((finished.workdir / f"evaluation_{split}.json").read_text())


@pytest.fixture
def kept_tidy(finished):
    """Removes what evaluations write to the shared workdir."""
    yield
    for path in finished.workdir.glob("evaluation_*.json"):
        path.unlink()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_it_measures_exactly_what_training_reported(programs, finished, kept_tidy, split):
    result = programs.run("evaluate", f"--workdir={finished.workdir}", f"--split={split}")
    assert result.returncode == 0, result.stderr
    written = evaluation(finished, split)
    assert written[split] == finished.results[split]
    assert written["popularity"] == finished.results["popularity"][split]
    assert written["protocol"] == finished.results["protocol"]
    assert written["selected"]["step"] == finished.results["selected"]["step"]
    starts = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert split in starts and f"popularity, {split}" in starts


def test_exact_search_stands_beside_the_same_beam_search_on_moved_and_renamed_data(programs, finished, kept_tidy):
    moved = programs.folder / "moved" / "another_name"
    shutil.copytree(programs.data, moved)
    result = programs.run("evaluate", f"--workdir={finished.workdir}", f"--data={moved}", "--search=exact")
    assert result.returncode == 0, result.stderr
    written = evaluation(finished, "test")
    assert written["beam"] == finished.results["test"] and written["data"] == str(moved)
    assert written["protocol"] == finished.results["protocol"] | {"search": "exact"}
    assert written["test"].keys() == written["beam"].keys()
    starts = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert {"test, exact search", "test, beam search", "popularity, test"} <= set(starts)
    share = written["share_of_exact_top_10"]
    assert 0 < share <= 1 and f"beam search finds {share:.2%} of the exact top 10" in result.stdout


def test_mistakes_are_one_line(programs, finished, tmp_path):
    error = the_error(programs.run("evaluate", f"--workdir={tmp_path}"))
    assert f"{tmp_path}/config.json" in error and "expected the --workdir of a run of launch.train" in error
    assert "--workdir" in the_error(programs.run("evaluate"))
    assert "validation|test" in the_error(programs.run("evaluate", f"--workdir={finished.workdir}", "--split=tset"))
