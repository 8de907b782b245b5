"""The program that compares tables of IDs: a recommender on each, the same table again for the same command."""

import json

import numpy as np
import pytest
from program_runs import tiny_flags

from idgenrec_jax.errors import InputError
from idgenrec_jax.id_comparison import _size_of, tables_of
from idgenrec_jax.ids.table import IdTable


@pytest.mark.slow
def test_a_table_of_the_run_is_compared_with_words_that_say_nothing(programs, finished, tmp_path):
    output = tmp_path / "compared"
    flags = [
        f"--tables=random_words,{finished.workdir}/ids/round_1.jsonl", f"--output={output}", "--seeds=1",
        f"--data={programs.data}", f"--config.data.tokenizer={programs.tokenizer}",
        *tiny_flags(training__recommender_epochs=1),
    ]  # fmt: skip
    first = programs.run("compare_ids", *flags)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    (header,) = [number for number, line in enumerate(lines) if line.startswith("table ")]
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["random_words", "round_1"]
    written = (output / "comparison.json").read_text()
    one, other = json.loads(written)["tables"]
    assert one["difference"] is None and 0 < other["p_value"] <= 1
    for table in (one, other):
        results = json.loads((output / table["name"] / "seed_0" / "results.json").read_text())
        assert table["gains"] == [results["validation"]["ndcg@10"]]
        assert 0 < table["losses"][0] < 10 and table["choices"] <= table["tokens"] + 1
    assert np.isclose(other["difference"], other["gains"][0] - one["gains"][0], atol=1e-6)
    assert programs.run("compare_ids", *flags).stdout == first.stdout


def test_words_for_tables_are_schemes_files_and_runs(tmp_path):
    (tmp_path / "run" / "ids").mkdir(parents=True)
    for number in (0, 1, 10):
        (tmp_path / "run" / "ids" / f"round_{number}.jsonl").touch()
    (tmp_path / "mine.txt").touch()
    found = tables_of(["keywords", str(tmp_path / "run"), str(tmp_path / "mine.txt")])
    assert list(found) == ["keywords", "run-round_0", "run-round_1", "run-round_10", "mine"]
    assert found["keywords"] == {"ids.scheme": "keywords", "ids.table": ""}
    assert found["run-round_10"] == {"ids.table": str(tmp_path / "run" / "ids" / "round_10.jsonl")}
    with pytest.raises(InputError, match="--tables: keyword: no such file.*one of keywords, title"):
        tables_of(["keyword"])
    with pytest.raises(InputError, match="none; name files"):
        tables_of([])
    with pytest.raises(InputError, match="mine is the name of two tables"):
        tables_of([str(tmp_path / "mine.txt")] * 2)


def test_tokens_and_choices_of_a_table_are_means_over_its_items():
    tokens = ((5, 6), (5, 7, 8), (5, 7), (9,))
    # At the root all choose; behind 5 three do; behind 5 7 two, one of them to end there.
    assert _size_of(IdTable(tuple("abcd"), tuple("abcd"), tokens)) == (2.0, (2 + 3 + 3 + 1) / 4)
