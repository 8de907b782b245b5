"""The whole experiment as frozen dataclasses.

Every field can be set on the command line as `--config.SECTION.FIELD=VALUE`; `fields_with_help` is what the launch
programs build their flags from, so a field's `help` is its one documentation.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from idgenrec_jax.errors import InputError, nearest, unknown_name
from idgenrec_jax.files import expand_home


def _field(
    default: Any,
    help: str,
    choices: Collection[str] = (),
    low: int | float | None = None,
    high: int | float | None = None,
    path: bool = False,
) -> Any:
    """Declare one configuration field: its documentation, its limits, and whether it names a file or folder."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "path": path}
    return dataclasses.field(default=default, metadata=metadata)


SEARCHES = ("beam", "exact")

CATALOGUE = "catalogue"
"""The name of the softmax over what continues an ID of the catalogue."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from, and how it is put into prompts."""

    path: str = _field("sample", "'sample' (the embedded catalogue) or a data folder; --data sets it", path=True)
    tokenizer: str = _field(
        "",
        "tokenizer folder or name, or train:SIZE for one of SIZE entries trained on the catalogue's texts; empty: the "
        "recommender's folder, the sample's own, or train:8000",
        path=True,
    )
    prompts: str = _field(
        "", "prompt file, lines 'task; seen|unseen; input; target'; empty: ten built-in templates", path=True
    )
    eval_prompt: str = _field("seen:0", "template that validation and test use, as GROUP:NUMBER")
    user_ids: str = _field(
        "none",
        "textual user IDs: none, train_history (from training items only), prefix (for each target from the items "
        "before it), published (from the whole sequence: leaks)",
        choices=("none", "train_history", "prefix", "published"),
    )
    history: str = _field(
        "causal",
        "what an item of a prompt's history sees: whole (all items) or causal (itself and those before it), with which "
        "one pass trains all targets of a user",
        choices=("whole", "causal"),
    )
    max_history: int = _field(20, "items of history in a recommender prompt, the last ones", low=1)
    id_max_history: int = _field(10, "items of history in an ID-phase prompt, the last ones", low=1)
    neighbour_items: int = _field(
        0,
        "items that follow an item most often in training, whose two most telling words each stand behind the item's "
        "title for the ID generator",
        low=0,
    )
    max_prompt_length: int = _field(512, "tokens in a prompt; older history items are dropped to fit", low=8)
    max_text_length: int = _field(256, "tokens of an item's text that the ID generator reads", low=4)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One T5: loaded from a folder, or of these sizes with random weights."""

    folder: str = _field(
        "", "Hugging Face T5 folder or name; empty: random initialisation with the sizes below", path=True
    )
    d_model: int = _field(128, "width of the residual stream", low=1)
    d_kv: int = _field(32, "width of one attention head", low=1)
    d_ff: int = _field(512, "width of the feed-forward layer", low=1)
    num_layers: int = _field(2, "encoder layers", low=1)
    num_decoder_layers: int = _field(2, "decoder layers", low=1)
    num_heads: int = _field(4, "attention heads", low=1)
    feed_forward: str = _field("relu", "relu (T5 v1.0) or gated-gelu (v1.1, Flan)", choices=("relu", "gated-gelu"))
    tie_word_embeddings: bool = _field(True, "one table for input and output embeddings (T5 v1.0)")
    dropout_rate: float = _field(0.1, "dropout probability in training; ID phases have none", low=0.0, high=0.95)
    vocab_size: int = _field(0, "rows of the embedding table; 0: the tokenizer's size rounded up to 128", low=0)
    compute_dtype: str = _field(
        "float32", "dtype of the arithmetic; parameters are float32", choices=("float32", "bfloat16")
    )
    rematerialise: str = _field(
        "none",
        "what the backward pass computes again: nothing, or the inside of all layers: less memory, more time",
        choices=("none", "layers"),
    )


@dataclasses.dataclass(frozen=True)
class IdsConfig:
    """How textual IDs are made."""

    table: str = _field(
        "", "file of given IDs (jsonl of this program, or lines 'ITEM words ...'); empty: generate", path=True
    )
    scheme: str = _field(
        "generated", "what makes the IDs of round 0 where no table is given: generated (the ID generator) or keywords"
    )
    num_groups: int = _field(10, "groups of diverse beam search, one beam each", low=1)
    max_penalty: int = _field(9, "diversity penalties 1, 2, .. up to this are tried for a unique ID", low=1)
    num_lengths: int = _field(2, "minimum lengths 1, 11, 21, .. tried for a unique ID", low=1)
    no_repeat_ngram_size: int = _field(
        2,
        "so many tokens the ID generator never writes twice in the same order, and a word that recurs is left out of "
        "an ID; 0: both may recur (published)",
        low=0,
    )
    soft_length: int = _field(9, "tokens of a soft ID in the ID phase (published: 10 with the start token)", low=1)
    fallback: str = _field(
        "suffix",
        "when the ID generator cannot make an ID unique: add the smallest number that does, or stop",
        choices=("suffix", "error"),
    )
    batch_size: int = _field(64, "items decoded at once", low=1)
    acceptance_examples: int = _field(
        0,
        "training examples under which the frozen recommender must predict better with an item's new ID than with its "
        "old one, which stays otherwise; 0: new IDs are taken as the ID generator writes them (published)",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Rounds, phases and optimisation."""

    seed: int = _field(0, "the run is a pure function of the configuration and this seed", low=0, high=2**30)
    rounds: int = _field(3, "rounds of one ID phase and one recommender phase", low=1)
    order: str = _field(
        "recommender_first",
        "which phase opens a round (published: id_first)",
        choices=("recommender_first", "id_first"),
    )
    id_epochs: int = _field(1, "epochs of an ID phase; 0: no ID phases", low=0)
    recommender_epochs: int = _field(10, "epochs of a recommender phase", low=1)
    final_recommender_epochs: int = _field(
        0, "recommender epochs after the last round, on its IDs, in one learning-rate schedule with the others", low=0
    )
    id_temperature: float = _field(
        1.0,
        "temperature of soft IDs at the end of the last ID phase, to which it falls from 1 evenly in its logarithm "
        "(published: 1)",
        low=0.01,
        high=1.0,
    )
    id_straight_through: bool = _field(
        False, "history items read as the words that the ID generator writes, with the gradient of its soft IDs"
    )
    id_leash: float = _field(
        0.0,
        "weight of the divergence (nats a token) of the ID generator from itself before the ID phase, in the ID loss",
        low=0.0,
    )
    id_neighbour_weight: float = _field(
        0.0,
        "weight of a term of the ID loss (nats an item): an item's ID is to begin like that of an item that follows it",
        low=0.0,
    )
    id_measured_examples: int = _field(
        512,
        "training examples by which an ID phase is measured: their loss under old, soft and new IDs; 0: none",
        low=0,
    )
    id_examples_per_epoch: int = _field(0, "training examples in an ID epoch, drawn anew each epoch; 0: all", low=0)
    recommender_examples_per_epoch: int = _field(0, "training examples in a recommender epoch; 0: all", low=0)
    recommender_batch_size: int = _field(256, "targets in a recommender step; about so many in windows", low=1)
    id_batch_size: int = _field(64, "examples in an ID step, at most", low=1)
    id_items_per_batch: int = _field(256, "distinct history items in an ID step, at most", low=1)
    id_chunks: int = _field(
        1, "parts of an ID step, computed in turn and again for the gradient: less memory, more time", low=1
    )
    gradient_accumulation: int = _field(
        1,
        "parts of a recommender or warm-start step, whose gradients are added up: less memory, the same step",
        low=1,
    )
    recommender_learning_rate: float = _field(1e-3, "peak learning rate of the recommender", low=0.0)
    id_learning_rate: float = _field(1e-4, "peak learning rate of the ID generator (published: 1e-8)", low=0.0)
    embedding_learning_rate_factor: float = _field(
        1.0,
        "learning rate of the embedding tables, relative to the others'; random weights want about 10; 0: they stay",
        low=0.0,
    )
    query_learning_rate_factor: float = _field(
        1.0,
        "learning rate of attention's query kernels, relative to the others'; random weights want about d_kv**-0.5, by "
        "which T5 draws them smaller",
        low=0.0,
    )
    softmax: str = _field(
        CATALOGUE,
        "over what the recommender's probabilities are normalised, by its name in training/losses.py: catalogue (the "
        "tokens that continue an ID of the catalogue) or vocabulary (all tokens)",
    )
    whole_epochs: int = _field(
        0,
        "epochs with --config.data.history=whole after the recommender_epochs of a phase with causal, so that an "
        "export is a plain T5",
        low=0,
    )
    recommender_average_decay: float = _field(
        0.0,
        "decay of the moving average of the recommender's weights, which is validated and kept in their place; 0: the "
        "weights themselves",
        low=0.0,
        high=0.99999,
    )
    warmup_fraction: float = _field(0.05, "share of training over which the learning rate rises", low=0.0, high=0.99)
    recommender_final_rate_fraction: float = _field(
        0.0,
        "share of its peak to which the recommender's learning rate falls at the end; 1: it stays",
        low=0.0,
        high=1.0,
    )
    weight_decay: float = _field(0.01, "AdamW weight decay, norms excepted", low=0.0)
    gradient_clip: float = _field(1.0, "largest global gradient norm; 0: gradients are not clipped", low=0.0)
    warm_start_epochs: int = _field(30, "epochs of the ID generator's warm start; none when it is pretrained", low=0)
    warm_start_learning_rate: float = _field(1e-3, "peak learning rate of the warm start", low=0.0)
    warm_start_batch_size: int = _field(32, "items in a warm-start step", low=1)
    warm_start_words: int = _field(5, "most words in a warm-start ID", low=1)
    warm_start_tokens: int = _field(9, "most tokens in a warm-start ID", low=1)
    warm_start_cluster_words: int = _field(
        0,
        "words at the start of a warm-start ID that name a cluster of items which the same users take in training, and "
        "a part of it; 0: none",
        low=0,
        high=2,
    )
    validate_every_epochs: int = _field(0, "recommender epochs between validations; 0: at a phase's end only", low=0)
    early_stop_patience: int = _field(0, "stop after so many recommender validations without a gain; 0: never", low=0)
    checkpoint_every_seconds: float = _field(
        20.0, "seconds after a checkpoint until the end of an epoch is one again; that of a phase always is", low=0.0
    )
    log_every_steps: int = _field(
        50, "steps between records of loss, learning rate, gradient norm and speed in metrics.jsonl; 0: none", low=0
    )
    checkpoint_every_steps: int = _field(1000, "steps between checkpoints inside an epoch; 0: at its end only", low=0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How users are ranked."""

    num_beams: int = _field(20, "beams of the constrained search; cut-offs above it are not reported", low=10)
    batch_size: int = _field(32, "users ranked at once", low=1)
    length_penalty: float = _field(
        0.0, "score = sum of log-probabilities / length**penalty (transformers' default: 1)", low=-10.0, high=10.0
    )
    trie_layout: str = _field(
        "auto",
        "layout of the trie on the device: dense (a mask of choices and tokens), csr (lists), or auto (dense while it "
        "is small)",
        choices=("auto", "dense", "csr"),
    )
    search: str = _field(
        "beam",
        "how the best items are found: beam (constrained beam search) or exact (every item of the catalogue is scored)",
        choices=SEARCHES,
    )
    seen_items: str = _field(
        "keep",
        "items that the user's history has already: keep them in the ranking, or remove",
        choices=("keep", "remove"),
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; -1 takes what the other axes leave."""

    data: int = _field(-1, "devices that split the batch", low=-1)
    fsdp: int = _field(1, "devices that split the parameters and the batch", low=-1)
    tensor: int = _field(1, "devices that split heads and feed-forward layers", low=-1)


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment.

    Raises:
        InputError: a value outside its limits, named with the flag that sets it.
    """

    data: DataConfig = DataConfig()
    recommender: ModelConfig = ModelConfig()
    id_generator: ModelConfig = ModelConfig()
    ids: IdsConfig = IdsConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        for name, field, value in _walk(self):
            _check(name, field, value)
        if self.training.id_items_per_batch < self.data.id_max_history:
            raise InputError(
                f"--config.training.id_items_per_batch={self.training.id_items_per_batch}: expected at least the "
                f"{self.data.id_max_history} items of --config.data.id_max_history, so that one history fits"
            )
        parts = {"gradient_accumulation": "recommender_batch_size", "id_chunks": "id_batch_size"}
        for name, batch in parts.items():
            if getattr(self.training, name) > getattr(self.training, batch):
                raise InputError(
                    f"--config.training.{name}={getattr(self.training, name)}: expected at most the "
                    f"{getattr(self.training, batch)} examples of --config.training.{batch}, one in each part"
                )

        if self.ids.acceptance_examples and not self.over_catalogue:
            raise InputError(
                f"--config.ids.acceptance_examples={self.ids.acceptance_examples}: expected 0 with --config.training."
                f"softmax={self.training.softmax}; IDs are compared by nats per item, which {CATALOGUE} alone gives"
            )
        if self.over_catalogue and self.evaluation.length_penalty:
            raise InputError(
                f"--config.evaluation.length_penalty={self.evaluation.length_penalty}: expected 0 with "
                f"--config.training.softmax={CATALOGUE}, whose scores are log-probabilities of items"
            )
        if self.training.whole_epochs and self.data.history == "whole":
            raise InputError(
                f"--config.training.whole_epochs={self.training.whole_epochs}: expected 0 with "
                "--config.data.history=whole, whose epochs are all of that kind; raise --config.training."
                "recommender_epochs"
            )

    @property
    def over_catalogue(self) -> bool:
        """Whether the recommender's probabilities are normalised over what continues an ID of the catalogue."""
        return self.training.softmax == CATALOGUE

    @property
    def is_causal(self) -> bool:
        """Whether the trained recommender reads a history causally, each item blind to those after it."""
        return self.data.history == "causal" and not self.training.whole_epochs

    def override(self, overrides: Mapping[str, Any]) -> "Config":
        """Return a copy with `{"section.field": value}` applied; a leading ~ of a path becomes the home folder.

        Raises:
            InputError: an unknown section or field (the nearest valid one is suggested), or a value outside its limits.
        """
        known = {name: field for name, field, _ in _walk(self)}
        sections: dict[str, dict[str, Any]] = {}
        for name, value in overrides.items():
            if name not in known:
                valid = nearest(name, known)
                raise InputError(f"--config.{name}: no such field; the nearest valid one is --config.{valid}")
            if known[name].metadata["path"] and isinstance(value, str):
                value = expand_home(value)
            section, field = name.split(".")
            sections.setdefault(section, {})[field] = value
        changed = {name: dataclasses.replace(getattr(self, name), **values) for name, values in sections.items()}
        return dataclasses.replace(self, **changed)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return every field as plain JSON types, one object per section."""
        return dataclasses.asdict(self)


def config_from_json(values: Any) -> Config:
    """Return the configuration that `Config.to_json` wrote.

    Raises:
        InputError: not an object of objects, a field that this version does not know, or a value outside its limits.
    """
    if not isinstance(values, dict) or not all(isinstance(fields, dict) for fields in values.values()):
        raise InputError("expected an object of sections, each an object of fields, as config.json has under 'config'")
    flat = {f"{section}.{name}": value for section, fields in values.items() for name, value in fields.items()}
    return Config().override(flat)


def fields_with_help() -> Iterator[tuple[str, type, str]]:
    """Yield (`section.field`, type, help text) of every field, in order."""
    for name, field, _ in _walk(Config()):
        choices = field.metadata["choices"]
        yield name, _type_of(field), field.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")


def path_fields() -> tuple[str, ...]:
    """Return the fields, as `section.field`, that name a file or folder."""
    return tuple(name for name, field, _ in _walk(Config()) if field.metadata["path"])


def idle_settings(config: Config) -> list[str]:
    """Return a line for each setting that is allowed, but with which a part of the run does nothing."""
    training = config.training
    rates = {
        "recommender": training.recommender_epochs,
        "id": training.id_epochs,
        "warm_start": 0 if config.id_generator.folder else training.warm_start_epochs,
    }
    lines = [
        f"--config.training.{phase}_learning_rate=0: these phases train nothing"
        for phase, epochs in rates.items()
        if epochs and getattr(training, f"{phase}_learning_rate") == 0
    ]
    is_random = not config.id_generator.folder
    if is_random and training.id_epochs and not training.warm_start_epochs:
        lines.append(
            "--config.training.warm_start_epochs=0: a random ID generator writes empty IDs, from which an ID phase "
            "learns nothing; expected at least a few epochs"
        )
    given = config.ids.table or config.ids.scheme != IdsConfig.scheme
    if is_random and not training.id_epochs and given and config.data.user_ids != "none":
        lines.append(
            f"--config.data.user_ids={config.data.user_ids}: an ID generator that nothing trains writes them, so they "
            "tell little; expected --config.training.id_epochs of 1 or more, or --config.id_generator.folder"
        )
    # Causal epochs that others follow are not validated.
    validated = training.whole_epochs or training.recommender_epochs
    if training.validate_every_epochs > validated:
        lines.append(
            f"--config.training.validate_every_epochs={training.validate_every_epochs}: more than the {validated} "
            "epochs of a phase, which is validated at its end only"
        )
    return lines


def _walk(config: Config) -> Iterator[tuple[str, dataclasses.Field, Any]]:
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            yield f"{section.name}.{field.name}", field, getattr(values, field.name)


def _type_of(field: dataclasses.Field) -> type:
    """The type of a field; annotations of this file are no strings."""
    assert isinstance(field.type, type)
    return field.type


def _check(name: str, field: dataclasses.Field, value: Any) -> None:
    kind = _type_of(field)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (kind in (int, float) and isinstance(value, bool)):
        raise InputError(f"--config.{name}: found {value!r}, expected a value of type {kind.__name__}")
    if kind in (int, float) and not _is_number_of_64_bits(value):
        raise InputError(f"--config.{name}: found {value!r:.60}, expected a finite number below 2**63")
    choices, low, high = field.metadata["choices"], field.metadata["low"], field.metadata["high"]
    if choices and value not in choices:
        raise unknown_name(f"--config.{name}", value, choices)
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"at least {low}" + ("" if high is None else f" and at most {high}")
        raise InputError(f"--config.{name}: found {value}, expected {limits}")


def _is_number_of_64_bits(value: int | float) -> bool:
    """Whether a number is finite; of a whole number with hundreds of digits, math.isfinite cannot say it."""
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
