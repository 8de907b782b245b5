"""The works that train the recommender on the batches that a run would have, beside a peer or another way of ours."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from idgenrec_jax.benchmark.exhaustive import mean_item_loss
from idgenrec_jax.benchmark.peer import differences, write_job
from idgenrec_jax.benchmark.training_steps import (
    LOSS_TOLERANCE,
    RATE,
    Steps,
    benchmark_optimizer,
    compare_losses,
    count_choices,
    optimizer_fields,
)
from idgenrec_jax.benchmark.work import Disagreement, Work
from idgenrec_jax.data.packing import SupervisedBatch, one_example_a_row
from idgenrec_jax.data.recommender_batches import RecommenderBatches, recommender_epoch, training_shape
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.models import operations
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.processes import put
from idgenrec_jax.sharding import replicated_beside
from idgenrec_jax.training.choice_softmax import ChoiceTable, choice_table
from idgenrec_jax.training.losses import supervised_loss
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.steps import compiler_options, make_supervised_step

COMPARED = 16
"""Examples whose loss is compared with the peer's."""
PEER_BATCH_SIZES = {"cpu": (8, 16, 32, 64), "cuda": (32, 64, 128, 256)}
"""Examples in a batch that the peer tries, by its device."""


class _Epoch(NamedTuple):
    """A recommender epoch as a run of this configuration has it, of which `num_steps` steps are taken."""

    renderer: PromptRenderer
    batches: RecommenderBatches
    num_steps: int
    choices: ChoiceTable | None


def recommender_training(
    experiment: Experiment, settings: dict[str, Any], *, num_steps: int, name: str = "recommender training"
) -> Work:
    """Return `num_steps` steps of a recommender epoch, drawn from all its prompt lengths.

    The peer trains on the same targets, each with a prompt and the whole ID, shuffled anew, padded to the longest of
    each batch, under a softmax over the vocabulary, and with histories that are not causal. Its loss is compared with
    ours of that kind; where ours is of another kind, it is compared with one that is computed target by target.
    `settings` go into the peer's job as they are (threads, device, dtype, compile).
    """
    config, model = experiment.config, experiment.recommender
    epoch = _make_epoch(experiment, num_steps)
    renderer, batches, num_steps, choices = epoch
    targets = [target for step in range(num_steps) for target in batches.targets(step)]
    pairs = [
        (renderer.prompt(target.user, target.history, target.template), renderer.target(target.item, target.template))
        for target in targets
    ]
    prompts, whole_targets = map(list, zip(*pairs, strict=True))
    train_step = make_supervised_step(
        model.graphdef,
        benchmark_optimizer(experiment),
        loss=supervised_loss(config.training.softmax),
        accumulation=config.training.gradient_accumulation,
        compiler_options=compiler_options(config.recommender.rematerialise),
    )
    further = () if choices is None else (put(choices, replicated_beside(model.params)),)
    train = Steps(
        experiment, model, lambda state, batch, key: train_step(state, batch, RATE, key, *further), batches, num_steps
    )
    made = [batches.batch(step) for step in range(num_steps)]
    columns = None if choices is None else len(renderer.choices.tokens)
    is_causal = made[0].order is not None

    def job(folder: Path) -> None:
        fields = optimizer_fields(experiment) | {
            "kind": "recommender_training",
            "batch_size": PEER_BATCH_SIZES[settings["device"]][0],
            "num_compared": COMPARED,
            "num_examples": len(targets),
            "seed": config.training.seed,
            "dropout_rate": config.recommender.dropout_rate,
        }
        models = {"recommender": (model.graphdef, model.params)}
        write_job(folder, {**settings, **fields}, models=models, ragged={"prompts": prompts, "targets": whole_targets})

    def compare(outputs: Mapping[str, np.ndarray]) -> str:
        first = prompts[:COMPARED], whole_targets[:COMPARED]
        source_width, target_width = (max(map(len, rows)) for rows in first)
        batch = one_example_a_row(*first, source=source_width, target=target_width)
        agreement = compare_losses("recommender step", model, lambda t5: recommender_loss(t5, batch), outputs)
        if choices is None and not is_causal:
            return agreement
        return f"over the vocabulary, of whole histories, {agreement}; {_compare_with_items(experiment, epoch)}"

    length = float(np.mean([len(prompt) for prompt in prompts]))
    return Work(
        name,
        "target",
        len(targets),
        train.run,
        operations.TRAINING * sum(_batch_operations(model.config, batch, columns) for batch in made),
        operations.training_bytes(model.config, num_steps),
        job=job,
        compare=compare,
        note=lambda: (
            f"{num_steps} batches of {len(targets) / num_steps:.0f} targets, prompts of {length:.0f} tokens on average "
            f"({sum(int((batch.prompt_segments > 0).sum()) for batch in made) / len(targets):.0f} encoded a target), "
            f"padding {batches.padding_shares[0]:.1%} of prompts and {batches.padding_shares[1]:.1%} of targets, "
            f"{train.host_time()}"
        ),
        differences=differences(renderer),
        peer_batch_sizes=PEER_BATCH_SIZES[settings["device"]],
    )


ONE_PASS = {"data.history": "causal", "training.softmax": "catalogue", "evaluation.length_penalty": 0.0}
PROMPT_EACH = {"data.history": "whole", "training.softmax": "vocabulary", "training.whole_epochs": 0}
"""What `one_pass` overrides on its two lines."""


def one_pass(one: Experiment, each: Experiment, settings: dict[str, Any], *, num_steps: int) -> Work:
    """Return recommender training of `one`, with all targets of a window in one pass, beside that of `each`.

    Those are experiments of one configuration under `ONE_PASS` and `PROMPT_EACH`.
    """
    first, second = (
        dataclasses.replace(recommender_training(experiment, settings, num_steps=num_steps, name=name), job=None)
        for experiment, name in (
            (one, "recommender training, one pass, catalogue"),
            (each, "recommender training, a prompt each, vocabulary"),
        )
    )
    return dataclasses.replace(first, beside=second)


def _make_epoch(experiment: Experiment, num_steps: int) -> _Epoch:
    """The first epoch of the configuration, its first `num_steps` steps."""
    config = experiment.config
    training = config.training
    renderer = experiment.ids.renderer(max_history=config.data.max_history, is_causal=config.data.history == "causal")
    shared = {"seed": training.seed, "batch_size": training.recommender_batch_size}
    batches = recommender_epoch(
        renderer,
        epoch=0,
        num_examples=training.recommender_examples_per_epoch,
        shape=training_shape(renderer, row_multiple=training.gradient_accumulation, **shared),
        **shared,
    )
    choices = choice_table(renderer.choices) if config.over_catalogue else None
    return _Epoch(renderer, batches, min(num_steps, len(batches)), choices)


def _compare_with_items(experiment: Experiment, epoch: _Epoch) -> str:
    """Compare the loss of the first batch with that of its targets, computed one by one."""
    model = experiment.recommender
    batch = epoch.batches.batch(0)
    ours = _first_loss(experiment, batch, epoch.choices)
    targets = epoch.batches.targets(0)
    expected = mean_item_loss(model, epoch.renderer, targets)
    error = abs(ours - expected) / abs(expected)
    if not error <= LOSS_TOLERANCE[model.config.compute_dtype]:
        raise Disagreement(f"recommender step: our loss is {ours}, target by target it is {expected}")
    return f"our loss of {len(targets)} targets equals the one computed target by target within {error:.1e}"


def _first_loss(experiment: Experiment, batch: SupervisedBatch, choices: ChoiceTable | None) -> float:
    graphdef = experiment.recommender.graphdef
    loss = supervised_loss(experiment.config.training.softmax)
    further = {} if choices is None else {"choices": choices}
    value = jax.jit(lambda params, batch, further: loss(nnx.merge(graphdef, params), batch, **further))
    return float(value(experiment.recommender.params, batch, further))


def _batch_operations(config: T5Config, batch: SupervisedBatch, columns: int | None) -> int | float:
    """The operations of the forward pass that the targets of a batch need.

    Every token of a row is encoded once, those of a window for all its targets. In attention it counts what it may
    read: of a window, what stands before it or belongs to the same target. Logits of `columns` tokens count at choices
    alone; None: of the vocabulary at every target token. Padding does not count.
    """
    order, encoder, cross, own = batch.order, 0, 0, 0
    for row in range(len(batch.prompt_segments)):
        source, target = np.asarray(batch.prompt_segments[row]), np.asarray(batch.target_segments[row])
        # [source, source], [target, source] and [target, target]
        of_source, of_target, within = (_same(*pair) for pair in ((source, source), (target, source), (target, target)))
        if order is not None:
            numbers, branches = np.asarray(order.numbers[row]), np.asarray(order.branches[row])
            targets = np.asarray(order.target_numbers[row])
            of_source &= _may_read(numbers, branches, numbers, branches)
            of_target &= _may_read(targets, targets, numbers, branches)
            within &= targets[:, None] == targets[None, :]
        encoder += int(of_source.sum())
        cross += int(of_target.sum())
        own += int(np.tril(within).sum())
    read, written = int((batch.prompt_segments > 0).sum()), int((batch.target_segments > 0).sum())
    logits = written if batch.choices is None else count_choices(batch.choices)
    return (
        operations.encoder_operations(config, read, encoder / read)
        + operations.cross_operations(config, read)
        + operations.decoder_operations(config, written, own / written, cross / written)
        + operations.output_operations(config, logits, columns)
    )


def _same(queries: Int[np.ndarray, " queries"], keys: Int[np.ndarray, " keys"]) -> Bool[np.ndarray, "queries keys"]:
    """Which pairs of positions belong to one example."""
    return (queries[:, None] == keys[None, :]) & (keys > 0)[None, :]


def _may_read(
    query_numbers: Int[np.ndarray, " queries"],
    query_branches: Int[np.ndarray, " queries"],
    numbers: Int[np.ndarray, " keys"],
    branches: Int[np.ndarray, " keys"],
) -> Bool[np.ndarray, "queries keys"]:
    """Which tokens of a window each one reads (see `CausalOrder`)."""
    is_before = numbers[None, :] <= query_numbers[:, None]
    return is_before & ((branches == 0)[None, :] | (branches[None, :] == query_branches[:, None]))
