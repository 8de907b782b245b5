"""The public API: load a finished run, recommend, evaluate."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from idgenrec_jax.config import Config, config_from_json
from idgenrec_jax.data.batches import PromptSource, bucket_widths, pad_rows
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation import Ranker, Ranking
from idgenrec_jax.experiment import load_data, load_prompts
from idgenrec_jax.files import read_json
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.models.create import abstract_model
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.sharding import batch_sharding, make_mesh, place_shapes
from idgenrec_jax.training.alternation import RANKS
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.workdir import PROMPTS_FILE, described_run, named_as_in


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item: its name, its textual ID, and its score (log-probability / length**length_penalty)."""

    item: str
    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The best state of a run; `params` and `graphdefs` have the keys "generator" and "recommender"."""

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
        InputError: `workdir` holds no run, no checkpoint yet, or its best one is damaged.
    """
    workdir = Path(workdir)
    described = described_run(workdir)
    best = Checkpoints(workdir / "checkpoints" / "best", keep=2)
    steps = best.steps()
    if not steps:
        raise InputError(f"{workdir}/checkpoints/best: no checkpoint yet; run launch.train until its first validation")
    step = steps[-1]
    if (workdir / "results.json").exists():
        results = read_json(workdir / "results.json", remedy="delete the workdir and train again")
        step = best.require(results["selected"]["step"])
    try:
        config = config_from_json(described["config"])
    except InputError as error:
        raise InputError(f"{workdir}/config.json: written by another version of this package; {error}") from error
    mesh = make_mesh(config.mesh)
    graphdefs, shapes = {}, {}
    for name, section in (("generator", "id_generator"), ("recommender", "recommender")):
        graphdefs[name], abstract = abstract_model(T5Config(**described["models"][section]))
        shapes[name] = place_shapes(mesh, abstract)
    return TrainedRun(
        config=config,
        tokenizer=Tokenizer.load(workdir / "tokenizer"),
        mesh=mesh,
        graphdefs=graphdefs,
        params=best.restore(step, shapes),
        vocab_size=described["models"]["recommender"]["vocab_size"],
        selected={name: value for name, value in best.meta(step).items() if name != RANKS},
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
        config = config.override({"data.prompts": str(workdir / PROMPTS_FILE)})
    dataset = named_as_in(workdir, load_data(config.data.path))
    prompts = load_prompts(config.data, run.tokenizer, dataset.name)
    ids = RoundIds(
        config, dataset, run.tokenizer, prompts, graphdef=run.graphdefs["generator"], folder=workdir / "ids"
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
            place_batch=partial(jax.device_put, device=batch_sharding(run.mesh)),
        )

    def evaluate(self, split: str) -> Ranking:
        """Rank the whole catalogue for every user of a split, "validation" or "test"."""
        return self._ranker.rank(self._params, self._source(), split, title=split)

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
        source = self._source()
        if source.user_ids is not None:
            raise InputError("this run was trained with user IDs, which new histories have not; use evaluate")
        prompts = [
            source.prompt(0, np.asarray([index[item] for item in history], np.int32), 0) for history in histories
        ]
        width = bucket_widths([len(prompt) for prompt in prompts], 1)[0]
        size = self.config.evaluation.batch_size
        trie = self._ranker.trie(source)
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

    def _source(self) -> PromptSource:
        return self.ids.source(max_history=self.config.data.max_history, evaluation=True)
