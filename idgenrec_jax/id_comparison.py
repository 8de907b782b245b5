"""How good tables of IDs are by themselves: the same recommender, trained from scratch on each of them."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.choices import find_choices
from idgenrec_jax.data.sample import load_data
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.significance import holm, paired_differences, read_gains, sign_flip_p_value
from idgenrec_jax.experiment import train
from idgenrec_jax.ids.schemes import SCHEMES
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.inputs import load_tokenizer, own_ids

Overrides = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ComparedTable:
    """What was found of one table; `losses` (nats per item) and `gains` (NDCG@10) are of validation, one a seed.

    `tokens` and `choices` are means over the items. `difference` is the mean over users of NDCG@10 less that with the
    first table, over the same seeds, and `p_value` that of a paired test, by Holm's procedure; None for the first.
    """

    name: str
    tokens: float
    choices: float
    losses: tuple[float, ...]
    gains: tuple[float, ...]
    difference: float | None = None
    p_value: float | None = None


def tables_of(words: Sequence[str]) -> dict[str, Overrides]:
    """Return the overrides that give each table, by its name.

    A word names a scheme, a file of IDs, or the folder of a run: all its rounds.

    Raises:
        InputError: it is none of these, or two tables have one name.
    """
    found: dict[str, Overrides] = {}
    for word in words:
        path = Path(word)
        if word in SCHEMES:
            made = {word: {"ids.scheme": word, "ids.table": ""}}
        elif path.is_file():
            made = {path.stem: {"ids.table": str(path)}}
        else:
            files = sorted((path / run_files.IDS).glob("round_*.jsonl"), key=lambda file: int(file.stem.split("_")[1]))
            made = {f"{path.name}-{file.stem}": {"ids.table": str(file)} for file in files}
        if not made:
            raise InputError(
                f"--tables: {word}: no such file, and no run with IDs; expected those, or one of {', '.join(SCHEMES)}"
            )
        if twice := sorted(found.keys() & made.keys()):
            raise InputError(f"--tables: {twice[0]} is the name of two tables; rename one of the files")
        found |= made
    if not found:
        raise InputError("--tables: none; name files of IDs, folders of runs or schemes, with commas between them")
    return found


def compare_tables(
    config: Config,
    tables: Mapping[str, Overrides],
    *,
    seeds: Sequence[int],
    output: Path,
    should_stop: Callable[[], bool],
) -> list[ComparedTable]:
    """Train a recommender on each table with each seed, in folders of `output`; one that is finished is not repeated.

    The recommender, its epochs and its batches are those of `config`; there are no ID phases.

    Raises:
        InputError: a table does not fit the data.
    """
    runs: dict[str, list[Path]] = {}
    fixed = {"training.id_epochs": 0, "training.rounds": 1, "training.final_recommender_epochs": 0}
    made = {name: config.override({**fixed, **overrides}) for name, overrides in tables.items()}
    ids = _tables(made)
    for name, of_table in made.items():
        runs[name] = [output / name / f"seed_{seed}" for seed in seeds]
        for seed, workdir in zip(seeds, runs[name], strict=True):
            train(of_table.override({"training.seed": seed}), workdir, should_stop=should_stop)
    results = [
        ComparedTable(
            name,
            *_size_of(ids[name]),
            tuple(_loss_of(workdir) for workdir in runs[name]),
            tuple(_results_of(workdir)["validation"][run_files.SELECTION_METRIC] for workdir in runs[name]),
        )
        for name in tables
    ]
    return _tested(results, runs)


def _tables(configs: Mapping[str, Config]) -> dict[str, IdTable]:
    """The IDs of every table, so that none of them is found at fault after hours."""
    config = next(iter(configs.values()))
    dataset = load_data(config.data.path)
    tokenizer = load_tokenizer(config, dataset)
    tables = {name: own_ids(of_table, dataset, tokenizer) for name, of_table in configs.items()}
    return {name: table for name, table in tables.items() if table is not None}


def _size_of(table: IdTable) -> tuple[float, float]:
    """The mean number of tokens, and of choices, of an item's ID."""
    # The end of an ID is a choice where other IDs go on. Any number may stand for it that no token has.
    end = 1 + max(token for tokens in table.tokens for token in tokens)
    choices = find_choices([list(map(list, table.tokens))], eos_token_id=end)
    return statistics.fmean(map(len, table.tokens)), float(np.mean(choices.counts() + choices.counts(narrow=True)))


def _results_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / run_files.RESULTS).read_text(encoding="utf-8"))


def _loss_of(workdir: Path) -> float:
    """The validation loss of the state that was selected."""
    step = _results_of(workdir)["selected"]["step"]
    records = map(json.loads, (workdir / run_files.METRICS).read_text(encoding="utf-8").splitlines())
    return next(record["loss"] for record in records if (record["split"], record["step"]) == ("validation", step))


def _tested(results: Sequence[ComparedTable], runs: Mapping[str, Sequence[Path]]) -> list[ComparedTable]:
    """The results with each table but the first compared with the first."""
    gains = {name: [read_gains(workdir) or {} for workdir in workdirs] for name, workdirs in runs.items()}
    first, *others = results
    differences = [paired_differences(gains[other.name], gains[first.name]) for other in others]
    p_values = holm([sign_flip_p_value(difference) for difference in differences])
    return [first] + [
        dataclasses.replace(other, difference=float(difference.mean()), p_value=p_value)
        for other, difference, p_value in zip(others, differences, p_values, strict=True)
    ]


def comparison_table(results: Sequence[ComparedTable]) -> str:
    """Return the results as plain text, the first table first, then by mean validation loss."""
    first, *others = results
    header = ["table", "tokens", "choices", "nats per item", "ndcg@10", "against the first"]
    rows = [header]
    for one in [first, *sorted(others, key=lambda one: statistics.mean(one.losses))]:
        against = "-" if one.difference is None else f"{one.difference:+.4f} (p {one.p_value:.4f})"
        sizes = [f"{one.tokens:.2f}", f"{one.choices:.2f}"]
        rows.append([one.name, *sizes, _spread(one.losses), _spread(one.gains), against])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _spread(values: Sequence[float]) -> str:
    deviation = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"
