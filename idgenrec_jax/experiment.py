"""One run in a workdir: put together from its configuration, trained to the end, its results written down."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import AbstractMesh, Mesh

from idgenrec_jax.config import Config, DataConfig
from idgenrec_jax.data.dataset import Dataset, load_dataset
from idgenrec_jax.data.prompts import PromptTemplate, PromptTokens, default_templates, load_templates
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation import Ranker, metrics_table, popularity_metrics
from idgenrec_jax.files import read_json, write_json
from idgenrec_jax.ids.rounds import Prompts, RoundIds
from idgenrec_jax.ids.table import IdTable, load_table
from idgenrec_jax.models.create import Model, create_model
from idgenrec_jax.models.huggingface import resolve_folder
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.processes import any_process, from_main, put
from idgenrec_jax.sharding import batch_devices, batch_sharding, make_mesh
from idgenrec_jax.training.alternation import Alternation, Validation
from idgenrec_jax.workdir import claim, named_as_in, protocol

EXAMPLE_IDS = 10
EXAMPLE_TEXT = 90

RANKS_FILE = "target_ranks.json"
"""The place of each user's target in the validation and the test ranking, from 0; -1 where it was not recommended."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, on the mesh, before its first step; `place_batch` puts numpy arrays there."""

    config: Config
    dataset: Dataset
    tokenizer: Tokenizer
    mesh: Mesh
    generator: Model
    recommender: Model
    ids: RoundIds
    ranker: Ranker
    place_batch: Callable[[Any], Any]


def load_data(path: str) -> Dataset:
    """Return the embedded catalogue ("sample") or the one in a data folder."""
    return load_sample() if path == "sample" else load_dataset(path)


def load_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer that the configuration names or implies.

    Raises:
        InputError: a data folder without a tokenizer and without a recommender folder to take it from.
    """
    if config.data.tokenizer:
        return Tokenizer.load(config.data.tokenizer)
    if config.recommender.folder:
        folder = resolve_folder(
            config.recommender.folder, flag="--config.recommender.folder", random_flag="--config.recommender.folder="
        )
        return Tokenizer.load(folder)
    if config.data.path == "sample":
        return sample_tokenizer()
    raise InputError(
        f"--data={config.data.path}: random weights come without a tokenizer; give a Hugging Face tokenizer folder or "
        "name with --config.data.tokenizer"
    )


def load_prompts(config: DataConfig, tokenizer: Tokenizer, dataset_name: str) -> Prompts:
    """Return the templates of the configuration, tokenised.

    Raises:
        InputError: the prompt file is at fault, `eval_prompt` names no template, or a template has {user_id} and user
            IDs are off.
    """
    with_users = config.user_ids != "none"
    templates = load_templates(config.prompts) if config.prompts else default_templates(with_user_ids=with_users)
    for template in templates:
        if "user_id" in template.fields and not with_users:
            raise InputError(
                f"{config.prompts}: template {template.input_text!r} has the field {{user_id}}, but "
                "--config.data.user_ids=none; set it to train_history, or remove the field"
            )
    tokenise = partial(PromptTokens, tokenizer=tokenizer, dataset_name=dataset_name)
    training = tuple(tokenise(template) for template in templates if template.group == "seen")
    return Prompts(training, tokenise(_evaluation_template(config, templates)))


def _evaluation_template(config: DataConfig, templates: list[PromptTemplate]) -> PromptTemplate:
    group, colon, number = config.eval_prompt.partition(":")
    candidates = [template for template in templates if template.group == group]
    if not colon or not number.isdigit() or int(number) >= len(candidates):
        counts = ", ".join(
            f"{name}:0 to {name}:{count - 1}"
            for name in ("seen", "unseen")
            if (count := sum(template.group == name for template in templates))
        )
        raise InputError(f"--config.data.eval_prompt: found {config.eval_prompt!r}, expected one of {counts}")
    return candidates[int(number)]


def assemble(config: Config, workdir: Path) -> Experiment:
    """Load data and tokenizer, and create both models on the mesh; `workdir` is where IDs will be kept.

    Raises:
        InputError: anything the user gave that does not fit.
    """
    dataset = named_as_in(workdir, load_data(config.data.path))
    check_splits(dataset, config.data.path)
    tokenizer = load_tokenizer(config)
    prompts = load_prompts(config.data, tokenizer, dataset.name)
    given = load_table(config.ids.table, dataset.items, tokenizer) if config.ids.table else None
    mesh = make_mesh(config.mesh)
    check_batches(config, mesh)
    seed = config.training.seed
    recommender = create_model(config.recommender, tokenizer, mesh, seed=2 * seed, section="recommender")
    generator = create_model(config.id_generator, tokenizer, mesh, seed=2 * seed + 1, section="id_generator")
    check_vocabularies(recommender.config, generator.config)
    place_batch = partial(put, sharding=batch_sharding(mesh))
    ids = RoundIds(
        config, dataset, tokenizer, prompts, graphdef=generator.graphdef, folder=workdir / "ids", given=given, mesh=mesh
    )
    ranker = Ranker(
        recommender.graphdef,
        config.evaluation,
        vocab_size=recommender.config.vocab_size,
        place_batch=place_batch,
    )
    return Experiment(config, dataset, tokenizer, mesh, generator, recommender, ids, ranker, place_batch)


def train(config: Config, workdir: str | Path, *, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Train both models in alternation and return the contents of `results.json`; goes on where a run was cut off.

    Raises:
        InputError: anything the user gave that does not fit.
        Interrupted: `should_stop` said so; the same call goes on later.
    """
    workdir = Path(workdir)
    start = time.monotonic()
    experiment = assemble(config, workdir)
    claim(
        workdir,
        config,
        experiment.dataset,
        experiment.tokenizer,
        text_tokens=experiment.ids.text_tokens,
        models={"recommender": experiment.recommender.config, "id_generator": experiment.generator.config},
    )
    if from_main((workdir / "results.json").exists):
        logging.info("%s is finished; delete it or name another --workdir to train again", workdir)
        return read_json(workdir / "results.json", remedy="delete the workdir to train again")

    def validate(params, source, title):
        ranking = experiment.ranker.rank(
            params, source, "validation", title=title, check_stop=lambda: alternation.check_stop()
        )
        return Validation(ranking.loss, ranking.metrics(), ranking.ranks().tolist())

    should_stop = any_process(should_stop)
    alternation = Alternation(
        config,
        experiment.ids,
        workdir=workdir,
        generator=(experiment.generator.graphdef, experiment.generator.params),
        recommender=(experiment.recommender.graphdef, experiment.recommender.params),
        vocab_size=experiment.recommender.config.vocab_size,
        pretrained_generator=experiment.generator.pretrained,
        validate=validate,
        should_stop=should_stop,
        place_batch=experiment.place_batch,
    )
    logging.info("ready to train after %.1f s", time.monotonic() - start)
    best = alternation.run()
    params = alternation.best_params()
    experiment.ids.load(best["id_round"])
    source = experiment.ids.source(max_history=config.data.max_history, evaluation=True)
    test = experiment.ranker.rank(
        params["recommender"], source, "test", title="test", check_stop=alternation.check_stop
    )
    results = {
        "validation": best["metrics"],
        "test": test.metrics(),
        "selected": {name: best[name] for name in ("step", "round", "phase", "epoch", "id_round")},
        "popularity": {
            split: popularity_metrics(experiment.dataset, split, num_results=config.evaluation.num_beams)
            for split in ("validation", "test")
        },
        "protocol": protocol(config),
        "users": len(experiment.dataset.evaluation_users),
        "items": len(experiment.dataset.items),
        "seconds": round(alternation.seconds, 1),
        "example_ids": example_ids(experiment.dataset, experiment.ids.table),
    }
    ranks = {
        "users": [experiment.dataset.users[user] for user in test.users],
        "validation": alternation.best_ranks(),
        "test": test.ranks().tolist(),
    }
    from_main(lambda: write_json(workdir / RANKS_FILE, ranks))
    from_main(lambda: write_json(workdir / "results.json", results))
    return results


def results_table(results: dict[str, Any]) -> str:
    """Return the validation and test metrics of `results.json` beside popularity's, as plain text."""
    columns = list(results["test"])
    rows = {
        "validation": results["validation"],
        "test": results["test"],
        "popularity, validation": results["popularity"]["validation"],
        "popularity, test": results["popularity"]["test"],
    }
    return metrics_table(rows, columns)


def example_ids(dataset: Dataset, table: IdTable) -> list[dict[str, str]]:
    """Return ten items with their IDs and the beginnings of their texts, spread evenly over the catalogue."""
    every = max(1, len(table) // EXAMPLE_IDS)
    return [
        {"item": table.items[index], "id": table.texts[index], "text": dataset.item_texts[index][:EXAMPLE_TEXT]}
        for index in range(0, every * min(EXAMPLE_IDS, len(table)), every)
    ]


def examples_table(examples: list[dict[str, str]]) -> str:
    """Return `example_ids` as plain text, one item a line."""
    width = max(len(example["id"]) for example in examples)
    return "\n".join(f"  {example['id']:<{width}}  <-  {example['text']}" for example in examples)


def check_splits(dataset: Dataset, path: str) -> None:
    """Raise InputError where there is nothing to train on, or nobody to evaluate."""
    if not dataset.training_examples():
        raise InputError(
            f"{path}/user_sequence.txt: nothing to train on; expected sequences of at least four items (or of two, "
            "which are only trained on)"
        )
    if not len(dataset.evaluation_users):
        raise InputError(f"{path}/user_sequence.txt: nobody to evaluate; expected sequences of at least three items")


def check_vocabularies(recommender: T5Config, generator: T5Config) -> None:
    """Raise InputError where the two models do not share one vocabulary."""
    if recommender.vocab_size != generator.vocab_size:
        raise InputError(
            f"the recommender's table has {recommender.vocab_size} rows, the ID generator's {generator.vocab_size}; "
            "soft IDs need the same vocabulary: set --config.recommender.vocab_size and "
            "--config.id_generator.vocab_size, or give weights that agree"
        )


def check_batches(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Check that the batches of ID generation and of ranking can be split; those of training are filled up.

    Raises:
        InputError: a batch size that is not a multiple of the devices.
    """
    devices = batch_devices(mesh)
    sizes = {
        "ids.batch_size": config.ids.batch_size,
        "evaluation.batch_size": config.evaluation.batch_size,
    }
    for name, size in sizes.items():
        if size % devices:
            raise InputError(
                f"--config.{name}={size}: expected a multiple of the {devices} devices that split a batch "
                "(--config.mesh.data times --config.mesh.fsdp)"
            )
