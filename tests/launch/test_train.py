"""The program launch.train, run as a user runs it: what a workdir holds, and what the flags do."""

import importlib.metadata
import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from program_runs import TINY, read_records, the_error

from idgenrec_jax.config import fields_with_help
from idgenrec_jax.evaluation.metrics import ranking_metrics
from idgenrec_jax.presets import preset
from idgenrec_jax.workdir import PACKAGES

pytestmark = pytest.mark.slow

COMMON_KEYS = {"step", "round", "phase", "epoch", "split", "seconds"}
STEP_KEYS = {"loss", "learning_rate", "gradient_norm", "examples_per_second"}
METRICS = {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@10"} | set(ranking_metrics(np.zeros(1, int), 10))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def flat(config):
    return {f"{section}.{name}": value for section, fields in config.items() for name, value in fields.items()}


def phase_order(records):
    """(round, phase) of every record, without repetitions."""
    return list(dict.fromkeys((record["round"], record["phase"]) for record in records))


def test_a_workdir_holds_what_was_promised_and_nothing_temporary(finished):
    assert {path.name for path in finished.workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "ids", "checkpoints", "results.json", "target_ranks.json", "tokenizer", "lock",
    }  # fmt: skip
    assert {path.name for path in (finished.workdir / "ids").iterdir()} == {
        "round_0.jsonl", "round_1.jsonl", "round_2.jsonl",
    }  # fmt: skip
    assert not [path for path in finished.workdir.rglob("*") if "tmp" in path.name]


def test_a_dry_run_prints_tables_and_writes_nothing(programs, tmp_path):
    flags = programs.train_flags(tmp_path / "run", mesh__data=1, mesh__fsdp=2)
    result = programs.run("train", "--dry_run", "--temporaries=none", *flags)
    assert result.returncode == 0, result.stderr
    assert "2 device(s)" in result.stdout and "Nothing was compiled" in result.stdout
    assert not (tmp_path / "run").exists()


def test_config_json_has_every_field_the_versions_and_the_protocol(finished, programs):
    described = json.loads((finished.workdir / "config.json").read_text())
    values = flat(described["config"])
    assert set(values) == {name for name, _, _ in fields_with_help()}
    given = TINY | {"data.path": str(programs.data), "data.tokenizer": str(programs.tokenizer)}
    assert {name: values[name] for name in given} == given
    # A data folder without --preset starts from `tiny`.
    base = flat(preset("tiny").to_json())
    assert {name: values[name] for name in values if name not in given} == {
        name: base[name] for name in base if name not in given
    }
    assert described["packages"] == {name: importlib.metadata.version(name) for name in PACKAGES}
    assert described["protocol"]["user_ids"] == "none" and not described["protocol"]["leaks_held_out_items"]


def test_metrics_jsonl_has_the_named_keys_and_steps_that_never_fall(finished):
    records = finished.records
    for record in records:
        assert set(record) >= COMMON_KEYS, record
        if record["split"] == "train":
            assert record["loss"] > 0
        elif record["split"] == "train_step":
            assert set(record) == COMMON_KEYS | STEP_KEYS
            assert all(0 < record[name] < 10_000 for name in STEP_KEYS)
        elif record["split"] == "ids":
            assert record["phase"] == "id" and record["ids_changed"] >= 0
        else:
            assert record["split"] == "validation" and set(record) >= METRICS
            assert all(0 <= record[name] <= 1 for name in METRICS)
    for name in ("step", "seconds"):
        values = [record[name] for record in records]
        assert values == sorted(values) and values[-1] > values[0] > 0


def test_every_third_step_is_recorded_once(finished):
    assert TINY["training.log_every_steps"] == 3
    steps = [record["step"] for record in finished.records if record["split"] == "train_step"]
    assert steps == list(range(3, finished.records[-1]["step"] + 1, 3))


def test_the_phases_come_in_the_configured_order_each_with_a_validation(finished):
    order = [(0, "warm_start"), (1, "id"), (1, "recommender"), (2, "id"), (2, "recommender")]
    assert phase_order(finished.records) == order
    validated = [(record["round"], record["phase"]) for record in finished.records if record["split"] == "validation"]
    assert validated == order[1:]
    epochs = [record["epoch"] for record in finished.records if record["split"] == "train"]
    assert epochs == [1, 2, 1, 1, 2, 1, 1, 2]


def test_results_json_has_the_named_blocks(finished):
    results = finished.results
    assert set(results) >= {"validation", "test", "selected", "protocol", "users", "items", "seconds"}
    assert set(results["validation"]) == set(results["test"]) == METRICS
    assert (results["users"], results["items"]) == (37, 30)
    assert results["protocol"]["user_ids"] == "none" and not results["protocol"]["leaks_held_out_items"]
    assert 0 < results["seconds"] < 600


def test_the_best_validation_is_selected(finished):
    validations = [record for record in finished.records if record["split"] == "validation"]
    best = max(validations, key=lambda record: record["ndcg@10"])
    selected = finished.results["selected"]
    assert {name: selected[name] for name in ("step", "round", "phase", "epoch")} == {
        name: best[name] for name in ("step", "round", "phase", "epoch")
    }
    assert finished.results["validation"] == {name: best[name] for name in METRICS}


def test_target_ranks_json_has_the_rank_behind_every_metric(finished):
    ranks = json.loads((finished.workdir / "target_ranks.json").read_text())
    assert len(set(ranks["users"])) == 37 and set(ranks["users"]) <= {f"user{number}" for number in range(40)}
    for split in ("validation", "test"):
        assert ranking_metrics(np.asarray(ranks[split]), 10) == finished.results[split]


def test_every_id_phase_makes_new_ids_unique_and_not_empty(finished, programs):
    tables = [rows(finished.workdir / "ids" / f"round_{number}.jsonl") for number in range(3)]
    for table in tables:
        assert [set(row) for row in table] == [{"item", "id", "tokens"}] * 30
        assert [row["item"] for row in table] == [f"item{number}" for number in range(30)]
        assert all(row["id"].strip() and row["tokens"] for row in table)
        assert len({tuple(row["tokens"]) for row in table}) == 30
    assert tables[0] != tables[1] != tables[2]


def test_it_prints_ten_ids_with_their_items_and_a_table_beside_popularity(finished):
    lines = finished.stdout.splitlines()
    assert sum("  <-  title: " in line for line in lines) == 10
    starts = [line.split("  ")[0] for line in lines]
    for row in ("validation", "test", "popularity, validation", "popularity, test"):
        assert row in starts
    assert re.search(r"recommender phase, epoch 2/2: (\d+)/\1 steps in \d+:\d\d, [\d.]+\D*/s, loss \d", finished.stderr)
    assert "3 of 40 users have fewer than 3 interactions" in finished.stderr


def test_a_finished_run_returns_at_once_with_the_same_table(finished, programs):
    before = {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("*") if path.is_file()}
    result = programs.train(finished.workdir)
    assert result.stdout == finished.stdout
    assert "is finished" in result.stderr and "epoch" not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("*") if path.is_file()} == before


def test_recommender_first_with_user_ids_and_own_prompts(programs, finished):
    prompts = programs.folder / "prompts.txt"
    prompts.write_text(
        "# task; group; input; target\n"
        "sequential; seen; {user_id} of {dataset} bought {history} now; next {target}\n"
        "sequential; unseen; after {history} {user_id} of {dataset} wants; {target} it is\n"
    )
    workdir = programs.folder / "recommender_first"
    programs.train(
        workdir,
        f"--config.data.prompts={prompts}",
        "--config.data.eval_prompt=unseen:0",
        "--config.data.user_ids=train_history",
        training__order="recommender_first",
        training__rounds=1,
        training__seed=1,
    )
    records = read_records(workdir)
    assert phase_order(records) == [(0, "warm_start"), (1, "recommender"), (1, "id")]
    assert records[0]["loss"] != finished.records[0]["loss"], "another seed is another run"
    protocol = json.loads((workdir / "results.json").read_text())["protocol"]
    assert (protocol["user_ids"], protocol["leaks_held_out_items"]) == ("train_history", False)
    assert protocol["eval_prompt"] == "unseen:0"
    users = rows(workdir / "ids" / "users_round_1.jsonl")
    assert [row["item"] for row in users] == [f"user{number}" for number in range(40)]
    assert len({tuple(row["tokens"]) for row in users}) == 40 and all(row["tokens"] for row in users)
    # {dataset} is the name of the folder in training, wherever the data are now.
    moved = programs.folder / "elsewhere" / "renamed"
    shutil.copytree(programs.data, moved)
    evaluated = programs.run("evaluate", f"--workdir={workdir}", "--split=test", f"--data={moved}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((workdir / "evaluation_test.json").read_text())["test"] == json.loads(
        (workdir / "results.json").read_text()
    )["test"]


def test_given_ids_as_plain_lines_an_early_stop_and_leaking_user_ids(programs):
    table = programs.folder / "given.txt"
    table.write_text("".join(f"item{number} Given, name-{number}!\n" for number in reversed(range(30))))
    workdir = programs.folder / "given_lines"
    programs.train(
        workdir,
        f"--config.ids.table={table}",
        "--config.data.user_ids=published",
        "--config.training.early_stop_patience=2",
        training__id_epochs=0,
        training__rounds=5,
        training__recommender_epochs=1,
        # Nothing is learned, so no validation after the first is better.
        training__recommender_learning_rate=0.0,
    )
    assert phase_order(read_records(workdir)) == [(1, "recommender"), (2, "recommender"), (3, "recommender")]
    assert {path.name for path in (workdir / "ids").iterdir()} == {"round_0.jsonl", "users_round_0.jsonl"}
    ids = rows(workdir / "ids" / "round_0.jsonl")
    assert [(row["item"], row["id"]) for row in ids] == [(f"item{n}", f"Given name {n}") for n in range(30)]
    results = json.loads((workdir / "results.json").read_text())
    assert results["selected"]["round"] == 1
    assert (results["protocol"]["user_ids"], results["protocol"]["leaks_held_out_items"]) == ("published", True)


def test_given_ids_as_jsonl_with_id_phases_after_them(programs, finished):
    table = finished.workdir / "ids" / "round_1.jsonl"
    workdir = programs.folder / "given_jsonl"
    programs.train(workdir, f"--config.ids.table={table}", training__rounds=1, training__recommender_epochs=1)
    assert phase_order(read_records(workdir)) == [(0, "warm_start"), (1, "id"), (1, "recommender")]
    assert (workdir / "ids" / "round_0.jsonl").read_text() == table.read_text()
    made = rows(workdir / "ids" / "round_1.jsonl")
    assert made != rows(table) and len({tuple(row["tokens"]) for row in made}) == 30


def test_no_flag_at_all_starts_the_embedded_catalogue_in_runs(programs, tmp_path):
    with programs.start("train", cwd=tmp_path) as process:
        config = tmp_path / "runs" / "sample-sample" / "config.json"
        deadline = time.monotonic() + 120
        while not config.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    described = json.loads(config.read_text())
    assert described["config"] == preset("sample").to_json()
    assert described["data"]["name"] == "sample" and described["data"]["items"] >= 450


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--workdri=x", "--workdir"),
        ("--config.training.round=3", "--config.training.rounds"),
        ("--config.training.rounds=many", "--config.training.rounds"),
        ("--config.training.rounds=0", "at least 1"),
        ("--config.training.order=id_frist", "id_first"),
        ("--preset=smal", "small"),
        ("stray", "'stray'"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_the_nearest_valid_one(programs, flag, expected):
    assert expected in the_error(programs.run("train", flag))


def test_help_lists_the_fields_of_the_configuration(programs):
    result = programs.run("train", "--help")
    text = result.stdout + result.stderr
    for name in ("--workdir", "--preset", "--config.training.rounds", "--config.recommender.folder"):
        assert name in text, name
