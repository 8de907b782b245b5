"""The table, the CSV and the plot, on trial folders with known ranks."""

import csv
import json

import numpy as np
import pytest

from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.significance import ndcg_gains
from idgenrec_jax.sweeps.plot import draw_summary
from idgenrec_jax.sweeps.summary import (
    BEST,
    DIFFERS,
    LEGEND,
    NO_RANKS,
    UNSUPPORTED,
    summarise,
    summary_table,
    write_summary,
)
from idgenrec_jax.sweeps.trials import claim_sweep, trials_of

USERS = [f"user{number}" for number in range(60)]
WORDS = ["best", "close", "far", "blind", "other_seed", "broken"]
SEEDS = {"other_seed": [5], "broken": [0]}


def finish(trial, ranks, *, with_ranks=True, reverse=False):
    """Write what a finished run leaves, with the users in either order."""
    trial.workdir.mkdir(parents=True)
    mean = float(ndcg_gains(np.asarray(ranks)).mean())
    results = {"validation": {"ndcg@10": mean, "mrr": 0.5}, "test": {"ndcg@10": mean / 2, "mrr": 0.25}}
    # As before version 0.2, when mrr did not tell the number of beams.
    results |= {"seconds": 2.5, "protocol": {"num_beams": 20}}
    (trial.workdir / "results.json").write_text(json.dumps(results))
    if with_ranks:
        users, values = (USERS[::-1], ranks[::-1]) if reverse else (USERS, ranks)
        content = {"users": users, "validation": list(values), "test": list(values)}
        (trial.workdir / "target_ranks.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Six configurations: the best, one that a few users tell from it, one that nearly all do, and three oddities."""
    output = tmp_path_factory.mktemp("sweep")
    trials = [{"ids.table": word, "training.seed": seed} for word in WORDS for seed in SEEDS.get(word, [0, 1])]
    claim_sweep(output, name="words", trials=trials, config={}, preset=None)
    base = [number % 7 for number in range(len(USERS))]
    ranks = {
        "best": base,
        # Three users lose a little and two gain less: nothing that chance would not do.
        "close": [rank + (number in (7, 14, 21)) - (number in (5, 6)) for number, rank in enumerate(base)],
        "far": [rank + 2 if number % 5 else -1 for number, rank in enumerate(base)],
        "blind": [rank + 3 for rank in base],
        "other_seed": [rank + 4 for rank in base],
    }
    for trial in trials_of(output):
        word, seed = trial.overrides["ids.table"], trial.overrides["training.seed"]
        if word == "broken":
            trial.folder.mkdir()
            error = {"error": "no such file", "exit_code": 2, "last_lines": []}
            (trial.folder / "error.json").write_text(json.dumps(error))
        else:
            # The second seed of the best is a little worse for everybody, and lists its users in the other order.
            shifted = [rank + seed for rank in ranks[word]] if seed < 5 else ranks[word]
            finish(trial, shifted, with_ranks=word != "blind", reverse=seed == 1)
    return output


def test_verdicts_and_spreads(output):
    configurations = {one.overrides["ids.table"]: one for one in summarise(trials_of(output))}
    assert list(configurations) == WORDS
    verdicts = {word: one.comparison and one.comparison.verdict for word, one in configurations.items()}
    assert verdicts == {
        "best": BEST, "close": UNSUPPORTED, "far": DIFFERS, "blind": NO_RANKS, "other_seed": NO_RANKS, "broken": None
    }  # fmt: skip
    best, close, far = (configurations[word] for word in ("best", "close", "far"))
    for one in (close, far):
        assert one.comparison.difference == pytest.approx(one.validation.mean - best.validation.mean)
    assert best.validation.deviation == pytest.approx(np.std(best.validation.values, ddof=1)) and best.test.mean > 0
    # Holm: the smaller of two p-values counts twice; 1/10,001 is the smallest there is.
    assert far.comparison.adjusted_p == pytest.approx(2 / 10_001) and close.comparison.adjusted_p > 0.05


def test_the_table_says_it_in_words(output):
    configurations = summarise(trials_of(output))
    lines = summary_table(configurations).splitlines()
    assert lines[0].split() == [
        "validation", "ndcg@10", "test", "ndcg@10", "against", "the", "best", "finished", "failed", "ids.table"
    ]  # fmt: skip
    best, close, far = configurations[:3]
    assert lines[1].startswith(f"{best.validation.mean:.4f} +- {best.validation.deviation:.4f}")
    assert " best " in lines[1]
    assert f"~ {close.comparison.difference:+.4f} (p {close.comparison.adjusted_p:.4f})" in lines[2]
    assert f"{far.comparison.difference:+.4f} (p 0.0002)" in lines[3] and "~" not in lines[3]
    assert NO_RANKS in lines[4] and NO_RANKS in lines[5] and "+-" not in lines[5], "one seed has no deviation"
    assert lines[7].startswith("trial 9 failed: no such file") and LEGEND in " ".join(lines)


def test_the_csv_has_a_line_a_trial(output):
    configurations = summarise(trials_of(output))
    write_summary(configurations, output)
    with open(output / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(10))
    for row, trial in zip(rows, trials_of(output), strict=True):
        if trial.index < 9:
            assert float(row["validation ndcg@10"]) == trial.results()["validation"]["ndcg@10"]
            assert float(row["test mrr@20"]) == 0.25 and row["training.seed"] == str(trial.overrides["training.seed"])
    assert rows[9]["status"] == "failed" and rows[9]["validation ndcg@10"] == rows[9]["against the best"] == ""
    assert [row["against the best"] for row in rows[:7]] == [BEST] * 2 + [UNSUPPORTED] * 2 + [DIFFERS] * 2 + [NO_RANKS]
    assert float(rows[2]["adjusted p"]) == configurations[1].comparison.adjusted_p


def test_the_plot_is_drawn_or_says_what_is_missing(output, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    configurations = summarise(trials_of(output))
    draw_summary(configurations, output)
    image = imread(output / "summary.png")
    assert image.shape[0] > 300 and image.shape[1] > 1000
    # Blue for those told apart from the best, gray for the one that is not.
    assert {tuple(colour) for colour in np.round(image[..., :3] * 255).reshape(-1, 3).astype(int)} >= {
        (31, 119, 180), (127, 127, 127)
    }  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"summary.png is not drawn: it needs matplotlib; pip install matplotlib$"):
        draw_summary(configurations, output)
