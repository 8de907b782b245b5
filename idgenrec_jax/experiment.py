"""One run in a workdir: put together from its configuration, trained to the end, its results written down."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from idgenrec_jax import run_files
from idgenrec_jax.config import Config, idle_settings
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.inspection import inspect_data
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.sample import data_folder, load_data
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.evaluation.catalogue_trie import catalogue_trie, searched_catalogue
from idgenrec_jax.evaluation.metrics import SPLITS
from idgenrec_jax.evaluation.popularity import popularity_metrics
from idgenrec_jax.evaluation.ranker import Ranker
from idgenrec_jax.files import expand_home, write_json
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.ids.schemes import keywords
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.inputs import Inputs, check_batches, check_vocabularies, checked_inputs
from idgenrec_jax.models.create import Model, create_model
from idgenrec_jax.processes import any_process, from_main, put
from idgenrec_jax.sharding import batch_devices, batch_sharding, make_mesh
from idgenrec_jax.training.alternation import Alternation, Validation
from idgenrec_jax.training.epochs import Epochs
from idgenrec_jax.training.losses import supervised_loss
from idgenrec_jax.training.record_writers import check_writers
from idgenrec_jax.training.selection import SELECTED
from idgenrec_jax.training.soft_ids import tokens_without_embedding
from idgenrec_jax.workdir import RunLock, claim, described_results, named_as_in, protocol, trained_tokenizer

EXAMPLE_IDS = 10
EXAMPLE_TEXT = 90


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, on the mesh, before its first step; `place_batch` puts numpy arrays there."""

    config: Config
    inputs: Inputs
    mesh: Mesh
    id_generator: Model
    recommender: Model
    ids: RoundIds
    ranker: Ranker
    place_batch: Callable[[Any], Any]

    def trie(self, renderer: PromptRenderer) -> Trie:
        """Return the trie of the IDs that `renderer` holds now."""
        return catalogue_trie(
            renderer,
            vocab_size=self.recommender.config.vocab_size,
            pad_token_id=self.inputs.tokenizer.pad_id,
            layout=self.config.evaluation.trie_layout,
            over_catalogue=self.config.over_catalogue,
        )

    def catalogue(self, renderer: PromptRenderer) -> Trie | CataloguePlan:
        """Return what the ranker needs of the IDs that `renderer` holds now, for the search of the configuration."""
        return searched_catalogue(
            self.config.evaluation.search,
            renderer,
            vocab_size=self.recommender.config.vocab_size,
            pad_token_id=self.inputs.tokenizer.pad_id,
            layout=self.config.evaluation.trie_layout,
            over_catalogue=self.config.over_catalogue,
        )


def assemble(config: Config, workdir: Path) -> Experiment:
    """Load data and tokenizer, and create both models on the mesh; `workdir` is where IDs will be kept.

    Raises:
        InputError: anything the user gave that does not fit.
    """
    # A folder must not be claimed by a configuration that cannot begin: mended, it would be refused there.
    supervised_loss(config.training.softmax)
    dataset = named_as_in(workdir, load_data(config.data.path))
    inputs = checked_inputs(config, dataset, trained_tokenizer(workdir, config))
    tokenizer = inputs.tokenizer
    mesh = make_mesh(config.mesh)
    check_batches(config, mesh)
    seed = config.training.seed
    recommender = create_model(config.recommender, tokenizer, mesh, seed=2 * seed, section="recommender")
    id_generator = create_model(config.id_generator, tokenizer, mesh, seed=2 * seed + 1, section="id_generator")
    check_vocabularies(recommender.config, id_generator.config)
    place_batch = partial(put, sharding=batch_sharding(mesh))
    ids = RoundIds(
        config, dataset, tokenizer, inputs.prompts, graphdef=id_generator.graphdef, folder=workdir, mesh=mesh
    )
    ranker = Ranker(recommender.graphdef, config, place_batch=place_batch)
    return Experiment(config, inputs, mesh, id_generator, recommender, ids, ranker, place_batch)


def train(
    config: Config,
    workdir: str | Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    restart_without_checkpoint: bool = False,
    log_to: Sequence[str] = (),
) -> dict[str, Any]:
    """Train both models in alternation and return the contents of `results.json`; goes on where a run was cut off.

    `restart_without_checkpoint`: where all checkpoints are broken, begin again. `log_to` names writers of records
    ("tensorboard", "wandb") beside metrics.jsonl.

    Raises:
        InputError: anything the user gave that does not fit.
        Interrupted: `should_stop` said so; the same call goes on later.
    """
    workdir = Path(expand_home(workdir))
    lock = RunLock(workdir)
    try:
        # Of a run that has begun, before the minutes that loading may take.
        if from_main(lambda: workdir.is_dir() and not (workdir / run_files.RESULTS).exists()):
            lock.take()
        return _train(
            config,
            workdir,
            lock,
            should_stop=should_stop,
            restart_without_checkpoint=restart_without_checkpoint,
            log_to=log_to,
        )
    finally:
        lock.release()


def _train(
    config: Config,
    workdir: Path,
    lock: RunLock,
    *,
    should_stop: Callable[[], bool],
    restart_without_checkpoint: bool,
    log_to: Sequence[str],
) -> dict[str, Any]:
    start = time.monotonic()
    for line in idle_settings(config):
        logging.warning(line)
    check_writers(log_to)
    experiment = assemble(config, workdir)
    inputs = experiment.inputs
    dataset, tokenizer = inputs.dataset, inputs.tokenizer
    for line in inspect_data(dataset, data_folder(config.data.path)).summary():
        logging.info("%s", line)
    if not from_main((workdir / run_files.RESULTS).exists):
        lock.take()
    claim(
        workdir,
        config,
        dataset,
        tokenizer,
        text_tokens=inputs.text_tokens,
        models={"recommender": experiment.recommender.config, "id_generator": experiment.id_generator.config},
    )
    if from_main((workdir / run_files.RESULTS).exists):
        logging.info("%s is finished; delete it or name another --workdir to train again", workdir)
        return described_results(workdir)

    def validate(params, renderer, title):
        ranking = experiment.ranker.rank(
            params,
            renderer,
            experiment.catalogue(renderer),
            "validation",
            title=title,
            check_stop=lambda: alternation.check_stop(),
        )
        return Validation(ranking.loss, ranking.metrics(), ranking.ranks().tolist())

    should_stop = any_process(should_stop)
    alternation = Alternation(
        config,
        experiment.ids,
        make_epochs(config, experiment.ids, inputs, row_multiple=batch_devices(experiment.mesh)),
        workdir=workdir,
        id_generator=(experiment.id_generator.graphdef, experiment.id_generator.params),
        recommender=(experiment.recommender.graphdef, experiment.recommender.params),
        no_embedding=tokens_without_embedding(tokenizer.punctuation_ids, experiment.recommender.config.vocab_size),
        given_ids=inputs.given_ids,
        pretrained_id_generator=experiment.id_generator.pretrained,
        validate=validate,
        validation_loss=lambda params, renderer: experiment.ranker.loss(params, renderer, "validation"),
        should_stop=should_stop,
        place_batch=experiment.place_batch,
        restart_without_checkpoint=restart_without_checkpoint,
        log_to=log_to,
    )
    logging.info("ready to train after %.1f s", time.monotonic() - start)
    best = alternation.run()
    params = alternation.best_params()
    experiment.ids.load(best["id_round"])
    renderer = experiment.ids.renderer(max_history=config.data.max_history, evaluation=True)
    test = experiment.ranker.rank(
        params["recommender"],
        renderer,
        experiment.catalogue(renderer),
        "test",
        title="test",
        check_stop=alternation.check_stop,
    )
    results = {
        "validation": best["metrics"],
        "test": test.metrics(),
        "selected": {name: best[name] for name in SELECTED},
        "popularity": {
            split: popularity_metrics(dataset, split, num_results=config.evaluation.num_beams)
            for split in SPLITS
        },
        "protocol": protocol(config, dataset.split),
        "users": len(dataset.evaluation_users),
        "targets": {split: len(dataset.held_out_cases(split)[0]) for split in SPLITS},
        "items": len(dataset.items),
        "seconds": round(alternation.seconds, 1),
        "example_ids": example_ids(dataset, experiment.ids.table),
    }
    ranks = described_ranks(dataset, {"validation": alternation.best_ranks(), "test": test.ranks().tolist()})
    from_main(lambda: write_json(workdir / run_files.RANKS, ranks))
    from_main(lambda: write_json(workdir / run_files.RESULTS, results))
    return results


def described_ranks(dataset: Dataset, ranks: dict[str, list[int]]) -> dict[str, Any]:
    """Return the contents of target_ranks.json: the rank of every target, and the users that they belong to.

    "users" is one list where both splits have the same, as under leave-one-out; otherwise it has a list for each split.
    A user stands there once for each target, in the order of the sequence.
    """
    users = {split: [dataset.users[user] for user in dataset.held_out_cases(split)[0]] for split in ranks}
    first, *others = users.values()
    return {"users": first if all(other == first for other in others) else users, **ranks}


def make_epochs(config: Config, ids: RoundIds, inputs: Inputs, *, row_multiple: int) -> Epochs:
    """Return the batches of every epoch of a run; each part of a step has a multiple of `row_multiple` rows."""
    tokenizer = inputs.tokenizer

    def warm_start_targets() -> list[list[int]]:
        given = inputs.given_ids
        words = keywords(inputs.dataset, tokenizer, config) if given is None else given.texts
        return [[*tokens, tokenizer.eos_id] for tokens in tokenizer.encode_batch(words)]

    return Epochs(
        config,
        ids,
        text_tokens=inputs.text_tokens,
        warm_start_targets=warm_start_targets,
        row_multiple=row_multiple,
    )


def example_ids(dataset: Dataset, table: IdTable) -> list[dict[str, str]]:
    """Return ten items with their IDs and the beginnings of their texts, spread evenly over the catalogue."""
    every = max(1, len(table) // EXAMPLE_IDS)
    return [
        {"item": table.items[index], "id": table.texts[index], "text": dataset.item_texts[index][:EXAMPLE_TEXT]}
        for index in range(0, every * min(EXAMPLE_IDS, len(table)), every)
    ]


def examples_table(examples: list[dict[str, str]]) -> str:
    """Return `example_ids` as plain text, one item a line."""
    width = max((len(example["id"]) for example in examples), default=0)
    return "\n".join(f"  {example['id']:<{width}}  <-  {example['text']}" for example in examples)
