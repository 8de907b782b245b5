"""The public API: load a finished run, recommend, evaluate."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from idgenrec_jax import run_files
from idgenrec_jax.config import Config, config_from_json
from idgenrec_jax.data.batches import PromptRenderer, bucket_widths, pad_rows
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.ranker import Ranker, Ranking
from idgenrec_jax.files import read_json
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.inputs import check_batches, load_data, load_inputs
from idgenrec_jax.models.create import abstract_model
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.processes import put
from idgenrec_jax.sharding import batch_sharding, check_heads, make_mesh, place_shapes
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.selection import BEST_RANKS, SELECTED
from idgenrec_jax.workdir import described_run, named_as_in


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item: its name, its textual ID, and its score (log-probability / length**length_penalty)."""

    item: str
    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The best state of a run; `params` and `graphdefs` have the keys "id_generator" and "recommender"."""

    config: Config
    tokenizer: Tokenizer
    mesh: Mesh
    graphdefs: dict[str, nnx.GraphDef]
    params: dict[str, Any]
    vocab_size: int
    selected: dict[str, Any]


def load_run(workdir: str | Path) -> TrainedRun:
    """Load the best checkpoint of a run.

    Raises:
        InputError: `workdir` holds no run, no checkpoint yet, its best one is damaged, or the devices present do not
            divide what the run's mesh splits.
    """
    workdir = Path(workdir)
    described = described_run(workdir)
    best = Checkpoints(workdir / run_files.BEST_CHECKPOINTS, keep=2)
    number = best.newest(remedy="restore one of them, or train again in another --workdir")
    if number is None:
        place = workdir / run_files.BEST_CHECKPOINTS
        raise InputError(f"{place}: no checkpoint yet; run launch.train until its first validation")
    if (workdir / run_files.RESULTS).exists():
        results = read_json(workdir / run_files.RESULTS, remedy="delete the workdir and train again")
        number = best.require(results["selected"]["step"])
    try:
        config = config_from_json(described["config"])
    except InputError as error:
        raise InputError(f"{workdir}/config.json: written by another version of this package; {error}") from error
    mesh = make_mesh(config.mesh)
    check_batches(config, mesh)
    graphdefs, shapes = {}, {}
    for name in run_files.CHECKPOINT_NAMES:
        t5_config = T5Config(**described["models"][name])
        check_heads(mesh, t5_config.num_heads, name)
        graphdefs[name], abstract = abstract_model(t5_config)
        shapes[name] = place_shapes(mesh, abstract)
    saved = best.restore(number, {key: shapes[name] for name, key in run_files.CHECKPOINT_NAMES.items()})
    return TrainedRun(
        config=config,
        tokenizer=Tokenizer.load(workdir / run_files.TOKENIZER),
        mesh=mesh,
        graphdefs=graphdefs,
        params={name: saved[key] for name, key in run_files.CHECKPOINT_NAMES.items()},
        vocab_size=described["models"]["recommender"]["vocab_size"],
        selected={name: value for name, value in best.meta(number, required=SELECTED).items() if name != BEST_RANKS},
    )


def load_run_ids(
    run: TrainedRun, workdir: str | Path, *, data: str | None = None
) -> tuple[Config, Dataset, RoundIds]:
    """Load the data of a run and the IDs that belong to its best state; `data` replaces the run's data folder.

    Returns the configuration with the paths as they are now, too.

    Raises:
        InputError: the data cannot be read or has items the run has no IDs for.
    """
    workdir = Path(workdir)
    config = run.config if data is None else run.config.override({"data.path": data})
    if config.data.prompts:
        config = config.override({"data.prompts": str(workdir / run_files.PROMPTS)})
    dataset = named_as_in(workdir, load_data(config.data.path))
    inputs = load_inputs(config, dataset, run.tokenizer, with_given_ids=False)
    ids = RoundIds(
        config, dataset, run.tokenizer, inputs.prompts, graphdef=run.graphdefs["id_generator"], folder=workdir
    )
    ids.load(run.selected["id_round"])
    return config, dataset, ids


class Recommender:
    """A trained run, at its best validation: the recommender and the IDs that belong to it."""

    def __init__(self, workdir: str | Path, *, data: str | None = None):
        """Load the best checkpoint of `workdir`; `data` replaces the data folder that the run was trained on.

        Raises:
            InputError: `workdir` holds no run, no checkpoint yet, or the data has items the run has no IDs for.
        """
        run = load_run(workdir)
        self.config, self.dataset, self.ids = load_run_ids(run, workdir, data=data)
        self.selected = run.selected
        self._params = run.params["recommender"]
        self._ranker = Ranker(
            run.graphdefs["recommender"],
            self.config.evaluation,
            vocab_size=run.vocab_size,
            place_batch=partial(put, sharding=batch_sharding(run.mesh)),
        )

    def evaluate(self, split: str) -> Ranking:
        """Rank the whole catalogue for every user of a split, "validation" or "test"."""
        return self._ranker.rank(self._params, self._renderer(), split, title=split)

    def recommend(self, histories: Sequence[Sequence[str]], count: int = 10) -> list[list[Recommendation]]:
        """Return the `count` best items for each history of item names, oldest first.

        Raises:
            InputError: an item that the catalogue does not have, or a count that is not between 1 and the beams.
        """
        beams = self.config.evaluation.num_beams
        if not 1 <= count <= beams:
            raise InputError(f"{count} recommendations asked for, expected 1 to {beams}, the beams of the run")
        index = {name: number for number, name in enumerate(self.dataset.items)}
        unknown = [item for history in histories for item in history if item not in index]
        if unknown:
            raise InputError(f"item {unknown[0]!r} is not in the catalogue of {self.dataset.name}; leave it out")
        if not histories:
            return []
        renderer = self._renderer()
        if renderer.user_ids is not None:
            raise InputError("this run was trained with user IDs, which new histories have not; use evaluate")
        prompts = [
            renderer.prompt(0, np.asarray([index[item] for item in history], np.int32), 0) for history in histories
        ]
        width = bucket_widths([len(prompt) for prompt in prompts], 1)[0]
        size = self.config.evaluation.batch_size
        trie = self._ranker.trie(renderer)
        results: list[list[Recommendation]] = []
        for start in range(0, len(prompts), size):
            rows = prompts[start : start + size]
            items, scores = self._ranker.search(self._params, *pad_rows(rows, size, width), trie)
            for row in range(len(rows)):
                results.append(
                    [
                        Recommendation(self.dataset.items[item], self.ids.table.texts[item], float(score))
                        for item, score in zip(items[row, :count], scores[row, :count], strict=True)
                        if item >= 0
                    ]
                )
        return results

    def _renderer(self) -> PromptRenderer:
        return self.ids.renderer(max_history=self.config.data.max_history, evaluation=True)
