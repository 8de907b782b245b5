"""What a run is given: data, tokenizer, prompts and IDs, loaded and checked before anything is trained."""

import dataclasses
import statistics
import time
from functools import partial
from pathlib import Path

from absl import logging
from jax.sharding import AbstractMesh, Mesh

from idgenrec_jax.config import Config, DataConfig
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.examples import training_positions
from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.sequences import sequences_path
from idgenrec_jax.data.spelling import check_prompt_spelling, check_spelling
from idgenrec_jax.data.templates import GROUPS, PromptTemplate, default_templates, load_templates, template_texts
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.tokenizer_training import DEFAULT_SIZE, TRAINED, learned_texts, train_tokenizer, trained_size
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.metrics import SPLITS
from idgenrec_jax.files import expand_home
from idgenrec_jax.ids.generation import item_prompts
from idgenrec_jax.ids.neighbours import generator_texts
from idgenrec_jax.ids.rounds import Prompts
from idgenrec_jax.ids.schemes import GENERATED, find_scheme, has_own_ids, unique_table
from idgenrec_jax.ids.table import IdTable, load_table
from idgenrec_jax.models.huggingface import resolve_folder
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.processes import from_main
from idgenrec_jax.sharding import batch_devices

# Of so many texts the tokens are counted.
_MEASURED_TEXTS = 1000


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads: `text_tokens` are what the ID generator reads for each item, `given_ids` the IDs of round
    0 where the ID generator does not write them."""

    dataset: Dataset
    tokenizer: Tokenizer
    prompts: Prompts
    text_tokens: list[list[int]]
    given_ids: IdTable | None = None


def checked_inputs(config: Config, dataset: Dataset, tokenizer: Tokenizer | None = None) -> Inputs:
    """Return everything that a run on `dataset` reads, checked as far as it can be without a model.

    The `tokenizer` is by default the one that the configuration names or implies.

    Raises:
        InputError: any of it is at fault, there is nothing to train on, nobody to evaluate, or no room in a prompt.
    """
    check_splits(dataset, config.data.path)
    inputs = load_inputs(config, dataset, tokenizer or load_tokenizer(config, dataset))
    check_prompt_room(config, inputs.prompts)
    return inputs


def load_inputs(config: Config, dataset: Dataset, tokenizer: Tokenizer) -> Inputs:
    """Return everything that a run on `dataset` reads.

    Raises:
        InputError: the prompts or the given IDs are at fault, or there is nothing to make IDs of.
    """
    if not config.ids.table:
        check_texts(dataset, config.data.path)
    prompts = load_prompts(config.data, tokenizer, dataset.name)
    given_ids = own_ids(config, dataset, tokenizer)
    length = config.data.max_text_length
    texts = generator_texts(dataset, tokenizer, config)
    text_tokens = item_prompts(texts, dataset.items, tokenizer, max_length=length)
    return Inputs(dataset, tokenizer, prompts, text_tokens, given_ids)


def own_ids(config: Config, dataset: Dataset, tokenizer: Tokenizer) -> IdTable | None:
    """Return the IDs of the user's file or of the scheme that the configuration names; None where they are generated.

    Raises:
        InputError: the file is at fault, or there is no such scheme, or both are given; or the tokenizer cannot write a
            word of the IDs.
    """
    if not has_own_ids(config.ids):
        return None
    if config.ids.table and config.ids.scheme != GENERATED:
        raise InputError(
            f"--config.ids.scheme={config.ids.scheme}: --config.ids.table gives the IDs already; leave out one of them"
        )
    if config.ids.table:
        return load_table(config.ids.table, dataset.items, tokenizer)
    words = find_scheme(config.ids.scheme)(dataset, tokenizer, config)
    table = unique_table(words, dataset.items, tokenizer)
    check_spelling(table.texts, tokenizer, f"IDs of the scheme {config.ids.scheme}", tokens=table.tokens)
    return table


def size_to_train(config: Config) -> int | None:
    """Return the entries of the tokenizer that is to be trained on the catalogue's own texts; None where one is named.

    Raises:
        InputError: the entries are no number, or out of range; or a model has pretrained weights, whose vocabulary is
            another.
    """
    size = trained_size(config.data.tokenizer)
    folders = {name: getattr(config, name).folder for name in ("recommender", "id_generator")}
    pretrained = [f"--config.{name}.folder={folder}" for name, folder in folders.items() if folder]
    if size is not None and pretrained:
        raise InputError(
            f"--config.data.tokenizer={config.data.tokenizer}: the weights of {pretrained[0]} have a vocabulary of "
            "their own; name the tokenizer that belongs to them, or leave out the folder and begin with random weights"
        )
    if not config.data.tokenizer and not config.recommender.folder and config.data.path != "sample":
        if pretrained:
            raise InputError(
                f"{pretrained[0]}: a recommender of random weights needs the tokenizer of these; name it with "
                "--config.data.tokenizer, or give weights with --config.recommender.folder"
            )
        return DEFAULT_SIZE
    return size


def load_tokenizer(config: Config, dataset: Dataset) -> Tokenizer:
    """Return the tokenizer that the configuration names or implies, trained on the texts of `dataset` where it says so.

    Raises:
        InputError: the tokenizer cannot be read or trained, or does not belong to the weights.
    """
    size = size_to_train(config)
    if size is not None:
        # One for all processes, whatever versions of the trainer their machines have.
        return Tokenizer.from_json(from_main(lambda: _train_tokenizer(config, dataset, size).to_json()))
    if config.data.tokenizer:
        return Tokenizer.load(config.data.tokenizer)
    if config.recommender.folder:
        folder = resolve_folder(
            config.recommender.folder, flag="--config.recommender.folder", random_flag="--config.recommender.folder="
        )
        return Tokenizer.load(folder)
    return sample_tokenizer()


def _train_tokenizer(config: Config, dataset: Dataset, size: int) -> Tokenizer:
    """A tokenizer of at most `size` entries for the texts and prompts of a run, and a line that says what was made."""
    start = time.monotonic()
    name = config.data.tokenizer
    if name and Path(name).exists():
        logging.warning("--config.data.tokenizer=%s: trains a tokenizer; the folder of this name is ./%s", name, name)
    texts = learned_texts(dataset.item_texts)
    templates = template_texts(_templates(config.data))
    # The name of a folder may hold bytes that are no text.
    dataset_name = dataset.name.encode("utf-8", "replace").decode("utf-8")
    trained = train_tokenizer(texts, size, whole=[*templates, dataset_name])
    tokenizer = Tokenizer.from_json(trained.to_str())
    lengths = list(map(len, tokenizer.encode_batch(texts[:_MEASURED_TEXTS])))
    logging.info(
        "a tokenizer of %d entries (--config.data.tokenizer=%s:%d) was trained on %d of %d texts in %.1f s; a text has "
        "%.1f tokens",
        tokenizer.size, TRAINED, size, len(texts), len(dataset.item_texts), time.monotonic() - start,
        statistics.fmean(lengths),
    )  # fmt: skip
    return tokenizer


def load_prompts(config: DataConfig, tokenizer: Tokenizer, dataset_name: str) -> Prompts:
    """Return the templates of the configuration, tokenised; warn of words in them that the tokenizer cannot write.

    Raises:
        InputError: the prompt file is at fault, `eval_prompt` names no template, or a template has {user_id} where
            user IDs are off, or where they cannot change with every target.
    """
    with_users = config.user_ids != "none"
    is_changing = _user_is_behind(config)
    templates = _templates(config)
    for template in templates:
        if "user_id" in template.fields and not with_users:
            raise InputError(
                f"{config.prompts}: template {shown(template.input_text)} has the field {{user_id}}, but "
                "--config.data.user_ids=none; set it to train_history, or remove the field"
            )
    tokenise = partial(PromptTokens, tokenizer=tokenizer, dataset_name=dataset_name)
    training = tuple(tokenise(template) for template in templates if template.group == "seen")
    prompts = Prompts(training, tokenise(_evaluation_template(config, templates)))
    for tokens in (*training, prompts.evaluation):
        if is_changing and tokens.user_is_before:
            raise InputError(
                f"{config.prompts}: template {shown(tokens.template.input_text)} has {{user_id}} before {{history}}, "
                "but --config.data.user_ids=prefix changes it with every item; put it behind {history}, or set "
                "--config.data.history=whole"
            )
    texts = list(dict.fromkeys(text for tokens in (*training, prompts.evaluation) for text in tokens.texts))
    check_prompt_spelling(texts, tokenizer, f"prompt templates of {config.prompts or 'this package'}")
    return prompts


def _templates(config: DataConfig) -> list[PromptTemplate]:
    """The templates of the user's file, or our own."""
    if config.prompts:
        return load_templates(config.prompts)
    return default_templates(config.user_ids != "none", user_is_behind=_user_is_behind(config))


def _user_is_behind(config: DataConfig) -> bool:
    """Whether the user ID changes with every target of a window, so that it must stand behind the history."""
    return config.user_ids == "prefix" and config.history == "causal"


def _evaluation_template(config: DataConfig, templates: list[PromptTemplate]) -> PromptTemplate:
    of_groups = {group: [template for template in templates if template.group == group] for group in GROUPS}
    by_name = {f"{group}:{number}": one for group, some in of_groups.items() for number, one in enumerate(some)}
    if config.eval_prompt not in by_name:
        counts = ", ".join(f"{group}:0 to {group}:{len(some) - 1}" for group, some in of_groups.items() if some)
        raise InputError(f"--config.data.eval_prompt: found {shown(config.eval_prompt)}, expected one of {counts}")
    return by_name[config.eval_prompt]


def check_texts(dataset: Dataset, path: str) -> None:
    """Raise InputError where no item has a text to make an ID of."""
    if not any(dataset.item_texts):
        raise InputError(
            f"{path}: all {len(dataset.items)} items have blank text, and textual IDs are made from text; give the "
            "items a title or a description, or give IDs of your own with --config.ids.table"
        )


def check_splits(dataset: Dataset, path: str) -> None:
    """Raise InputError where there is nothing to train on, or nobody to evaluate."""
    fault = _fault_of_splits(dataset)
    if fault:
        raise InputError(f"{sequences_path(Path(expand_home(path)))}: {fault}")


def _fault_of_splits(dataset: Dataset) -> str | None:
    """What a run would lack, and the way out."""
    is_trained = len(training_positions(dataset)[0]) > 0
    lacking = [split for split in SPLITS if not len(dataset.held_out_cases(split)[0])]
    if dataset.boundaries is None:
        if not is_trained:
            return (
                "nothing to train on; expected sequences of at least four items (or of two, which are only trained on)"
            )
        return "nobody to evaluate; expected sequences of at least three items" if lacking else None
    way_out = 'correct the counts of "train" and "validation", or leave them out for leave-one-out'
    if not is_trained:
        return f'nothing to train on; expected users with a "train" of at least two; {way_out}'
    purposes = {"validation": "by which the best state is chosen", "test": "which the results are of"}
    return f"no {lacking[0]} target, {purposes[lacking[0]]}; {way_out}" if lacking else None


def check_prompt_room(config: Config, prompts: Prompts) -> None:
    """Raise InputError where not even one item of history fits into a prompt: nothing could be learned from it."""
    shortest = {"a recommender prompt": (1, (*prompts.training, prompts.evaluation))}
    if config.training.id_epochs:
        shortest["an ID-phase prompt (--config.ids.soft_length)"] = (config.ids.soft_length, prompts.training)
    for title, (id_length, templates) in shortest.items():
        for tokens in templates:
            fields = tokens.template.fields
            needed = tokens.input_length(1) + id_length + ("user_id" in fields)
            if "history" in fields and needed > config.data.max_prompt_length:
                raise InputError(
                    f"--config.data.max_prompt_length={config.data.max_prompt_length}: {title} of template "
                    f"{tokens.template.input_text!r} with one item of history takes at least {needed} tokens; raise it "
                    "or shorten the template"
                )


def check_vocabularies(recommender: T5Config, id_generator: T5Config) -> None:
    """Raise InputError where the two models do not share one vocabulary."""
    if recommender.vocab_size != id_generator.vocab_size:
        raise InputError(
            f"the recommender's table has {recommender.vocab_size} rows, the ID generator's {id_generator.vocab_size}; "
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
