"""The training works: a recommender phase and an ID phase, on the batches that a run would have."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from idgenrec_jax.benchmark.peer import write_job
from idgenrec_jax.benchmark.work import Disagreement, Work
from idgenrec_jax.data.batches import PromptRenderer
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.packing import PackedBatches, one_example_a_row
from idgenrec_jax.data.recommender_batches import recommender_epoch, training_shape
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.models import operations
from idgenrec_jax.models.create import Model
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.id_loss import id_loss
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.soft_ids import tokens_without_embedding
from idgenrec_jax.training.steps import make_id_step, make_supervised_step, place_train_state, seed_key

_TOLERANCE = 1e-3
_RATE = np.float32(1e-4)


def recommender_training(experiment: Experiment, settings: dict[str, Any], *, num_steps: int) -> Work:
    """Return `num_steps` steps of a recommender epoch, drawn from all its prompt lengths.

    The peer trains on the same examples, shuffled anew and padded to the longest of each batch. `settings` go into its
    job as they are (threads, device, dtype, compile).
    """
    config, model = experiment.config, experiment.recommender
    batch_size = config.training.recommender_batch_size
    renderer = experiment.ids.renderer(max_history=config.data.max_history)
    epoch = recommender_epoch(
        renderer,
        seed=config.training.seed,
        epoch=0,
        batch_size=batch_size,
        num_examples=config.training.recommender_examples_per_epoch,
        shape=training_shape(
            renderer,
            seed=config.training.seed,
            batch_size=batch_size,
            row_multiple=config.training.gradient_accumulation,
        ),
    )
    num_steps = min(num_steps, len(epoch))
    pairs = [pair for step in range(num_steps) for pair in epoch.examples(step)]
    prompts, targets = map(list, zip(*pairs, strict=True))
    step = make_supervised_step(
        model.graphdef, _optimizer(experiment), accumulation=config.training.gradient_accumulation
    )
    train = _Steps(experiment, model, lambda state, batch, key: step(state, batch, _RATE, key), epoch, num_steps)
    read, written = sum(map(len, prompts)), sum(map(len, targets))
    length, answer = read / len(prompts), written / len(targets)
    total_operations = operations.TRAINING * (
        operations.encoder_operations(model.config, read, length)
        + operations.cross_operations(model.config, read)
        + operations.decoder_operations(model.config, written, answer, length)
        + operations.output_operations(model.config, written)
    )

    def job(folder: Path) -> None:
        fields = _optimizer_fields(experiment) | {
            "kind": "recommender_training",
            "batch_size": batch_size,
            "num_steps": num_steps,
            "seed": config.training.seed,
            "dropout_rate": config.recommender.dropout_rate,
        }
        models = {"recommender": (model.graphdef, model.params)}
        write_job(folder, {**settings, **fields}, models=models, ragged={"prompts": prompts, "targets": targets})

    def compare(outputs: Mapping[str, np.ndarray]) -> str:
        first = prompts[:batch_size], targets[:batch_size]
        source_width, target_width = (max(map(len, rows)) for rows in first)
        batch = one_example_a_row(*first, source=source_width, target=target_width)
        return _compare_losses("recommender step", model, lambda t5: recommender_loss(t5, batch), outputs)

    return Work(
        "recommender training",
        "example",
        len(prompts),
        train.run,
        total_operations,
        operations.training_bytes(model.config, num_steps),
        job=job,
        compare=compare,
        note=lambda: (
            f"{num_steps} batches of {batch_size}, prompts of {length:.0f} tokens on average, "
            f"padding {epoch.padding_shares[0]:.1%} of prompts and {epoch.padding_shares[1]:.1%} of targets, "
            f"{train.host_time()}"
        ),
    )


def id_training(
    experiment: Experiment,
    settings: dict[str, Any],
    *,
    num_steps: int,
    num_peer_examples: int,
    peer_batch_size: int,
    pad_histories: bool,
) -> Work:
    """Return `num_steps` steps of an ID epoch.

    The peer does it the published way: every history item of every example is encoded anew, and the loop that writes
    the IDs stays in the graph; with `pad_histories` histories are filled up to the longest of a batch, as published. It
    takes the first `num_peer_examples` of the same examples. `settings` go into its job as they are (threads, device,
    dtype).
    """
    config, recommender = experiment.config, experiment.recommender
    id_generator = experiment.id_generator
    if id_generator.config.tie_word_embeddings and not id_generator.pretrained:
        id_generator = dataclasses.replace(id_generator, params=_writing_params(id_generator.params))
    renderer = experiment.ids.renderer(max_history=config.data.id_max_history)
    plan = _id_batches(experiment, renderer, config.training.id_batch_size, config.training.id_items_per_batch)
    batches = [plan.batch(step) for step in range(min(num_steps, len(plan)))]
    examples = [example for step in range(len(batches)) for example in plan.examples(step)]
    compared = _id_batches(experiment, renderer, peer_batch_size, peer_batch_size * renderer.max_history)
    fullest = max(range(len(compared)), key=lambda step: len(compared.examples(step)))
    punctuation_ids = experiment.inputs.tokenizer.punctuation_ids
    no_embedding = tokens_without_embedding(punctuation_ids, recommender.config.vocab_size)
    length = config.ids.soft_length
    step = make_id_step(
        id_generator.graphdef,
        recommender.graphdef,
        _optimizer(experiment),
        jnp.asarray(no_embedding),
        length,
        chunks=config.training.id_chunks,
    )
    train = _Steps(
        experiment,
        id_generator,
        lambda state, batch, key: step(state, recommender.params, batch, _RATE, key),
        plan,
        len(batches),
    )

    def job(folder: Path) -> None:
        fields = _optimizer_fields(experiment) | {
            "kind": "id_training",
            "batch_size": peer_batch_size,
            "num_compared": len(compared.examples(fullest)),
            "pad_histories": pad_histories,
            "id_length": length,
            "num_steps": -(-min(num_peer_examples, len(examples)) // peer_batch_size),
        }
        prompts, slot_items, slot_positions, histories, targets = [], [], [], [], []
        for user, position, template in compared.examples(fullest) + examples:
            sequence = experiment.inputs.dataset.training_sequence(user)
            tokens, slot_item, slot_position, kept = renderer.slots(user, sequence[:position], template, length)
            prompts.append(tokens)
            slot_items += slot_item
            slot_positions += slot_position
            histories.append(kept)
            targets.append(renderer.target(int(sequence[position]), template))
        write_job(
            folder,
            {**settings, **fields},
            models={
                "recommender": (recommender.graphdef, recommender.params),
                "id_generator": (id_generator.graphdef, id_generator.params),
            },
            ragged={
                "texts": experiment.inputs.text_tokens,
                "prompts": prompts,
                "histories": histories,
                "targets": targets,
            },
            arrays={
                "no_embedding": no_embedding,
                "prompts_slot_item": np.asarray(slot_items, np.int32),
                "prompts_slot_position": np.asarray(slot_positions, np.int32),
            },
        )

    def compare(outputs: Mapping[str, np.ndarray]) -> str:
        batch = compared.batch(fullest)
        frozen = nnx.merge(recommender.graphdef, recommender.params)
        return _compare_losses(
            "ID step",
            id_generator,
            lambda t5: id_loss(t5, frozen, batch, jnp.asarray(no_embedding), id_length=length),
            outputs,
        )

    count = sum(int((batch.item_places > 0).sum()) for batch in batches)
    tokens = {
        name: sum(int((getattr(batch, name) > 0).sum()) for batch in batches)
        for name in ("item_segments", "prompt_segments", "target_segments")
    }
    padding = {name: 1.0 - used / sum(getattr(batch, name).size for batch in batches) for name, used in tokens.items()}
    texts, prompts, targets = tokens.values()
    total_operations = (
        _writing_operations(id_generator.config, count, length, texts / count)
        + _frozen_operations(recommender.config, len(examples), prompts / len(examples), targets / len(examples))
    )
    return Work(
        f"ID training, peer {'as published' if pad_histories else f'batch {peer_batch_size}'}",
        "example",
        len(examples),
        train.run,
        total_operations,
        operations.training_bytes(id_generator.config, len(batches)),
        job=job,
        compare=compare,
        note=lambda: (
            f"{len(batches)} batches of {len(examples) / len(batches):.0f} examples and "
            f"{count / len(batches):.0f} distinct items (peer batch {peer_batch_size}, histories "
            f"{'padded' if pad_histories else 'not padded'}), "
            f"padding {padding['item_segments']:.1%} of texts and {padding['prompt_segments']:.1%} of prompts, "
            f"{train.host_time()}"
        ),
    )


def _writing_params(params: PyTree) -> PyTree:
    """The parameters of a random T5 with tied tables, changed so that it writes words.

    It otherwise repeats its start token, whose embedding dominates the decoder's states: an ID of padding, which has no
    gradient.
    """
    params = jax.tree.map(lambda leaf: leaf, params)
    params["shared"]["table"] = jax.tree.map(lambda table: 0.2 * table, params["shared"]["table"])
    scale = params["decoder"]["final_norm"]["scale"]
    params["decoder"]["final_norm"]["scale"] = jax.tree.map(lambda scale: 20.0 * scale, scale)
    return params


def _writing_operations(config: T5Config, items: int, length: int, text: float) -> float:
    """The operations of writing `items` IDs of `length` tokens from texts of mean `text`, with gradient.

    One pass without gradient finds the tokens. The mean of the recommender's embeddings takes a second product with the
    vocabulary, whose table has no gradient.
    """
    one_pass = (
        operations.encoder_operations(config, items * text, text)
        + operations.cross_operations(config, items * text)
        + operations.decoder_operations(config, items * length, length / 2, text)
        + operations.output_operations(config, items * length)
    )
    mean = operations.FROZEN * operations.output_operations(config, items * length)
    return (1 + operations.TRAINING) * one_pass + mean


def _frozen_operations(config: T5Config, examples: int, prompt: float, target: float) -> float:
    """The operations of a frozen recommender's loss and its gradient by the prompt's embeddings."""
    return operations.FROZEN * (
        operations.encoder_operations(config, examples * prompt, prompt)
        + operations.cross_operations(config, examples * prompt)
        + operations.decoder_operations(config, examples * target, target / 2, prompt)
        + operations.output_operations(config, examples * target)
    )


class _Steps:
    """Training that goes on from run to run over the same batches, made as they are needed, as in a real epoch."""

    def __init__(
        self,
        experiment: Experiment,
        model: Model,
        step: Callable[..., tuple],
        plan: PackedBatches | IdBatches,
        num_steps: int,
    ):
        """Start from the model's parameters, which are copied: a step consumes its state."""
        self._step, self._plan, self._num_steps, self._place = step, plan, num_steps, experiment.place_batch
        copied = jax.tree.map(jnp.copy, model.params)
        self._state = place_train_state(copied, _optimizer(experiment))
        self._key = seed_key(experiment.config.training.seed)

    def run(self) -> float:
        """Train on every batch once, and return the last loss."""
        start = time.perf_counter()
        for number in range(self._num_steps):
            self._state, metrics = self._step(self._state, self._place(self._plan.batch(number)), self._key)
        loss = float(metrics["loss"])
        self._seconds = time.perf_counter() - start
        return loss

    def host_time(self) -> str:
        """Return in words how long the host takes to make a batch, and which share of the last run's steps that is.

        Batches are made while the device computes: it waits for them only where the share comes near to all.
        """
        start = time.perf_counter()
        for number in range(self._num_steps):
            self._plan.batch(number)
        seconds = time.perf_counter() - start
        share = seconds / self._seconds
        return f"a batch made in {seconds / self._num_steps * 1e3:.1f} ms, {share:.2%} of the step that runs meanwhile"


def _id_batches(experiment: Experiment, renderer: PromptRenderer, batch_size: int, items_per_batch: int) -> IdBatches:
    """The batches of the first ID epoch, of at most so many examples and distinct items."""
    training = experiment.config.training
    texts = experiment.inputs.text_tokens
    shared = {"seed": training.seed, "id_length": experiment.config.ids.soft_length}
    limits = {"batch_size": batch_size, "items_per_batch": items_per_batch, "row_multiple": training.id_chunks}
    shape = id_shape(renderer, texts, **limits, **shared)
    return IdBatches(renderer, texts, epoch=0, num_examples=training.id_examples_per_epoch, shape=shape, **shared)


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    training = experiment.config.training
    return make_optimizer(clip_norm=training.gradient_clip, weight_decay=training.weight_decay)


def _optimizer_fields(experiment: Experiment) -> dict[str, float]:
    training = experiment.config.training
    return {
        "learning_rate": float(_RATE),
        "weight_decay": training.weight_decay,
        "clip_norm": training.gradient_clip,
    }


def _compare_losses(
    name: str, model: Model, loss_of: Callable[[T5], jax.Array], outputs: Mapping[str, np.ndarray]
) -> str:
    """Compare our loss and the norm of its gradient with the peer's; Disagreement where they are not the same."""

    def loss(params: PyTree) -> jax.Array:
        return loss_of(nnx.merge(model.graphdef, params))

    value, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    ours = np.asarray([value, optax.global_norm(gradients)])
    theirs = np.asarray([outputs["loss"], outputs["gradient_norm"]], np.float64).reshape(-1)
    if not theirs.all():
        raise Disagreement(f"{name}: the peer's loss and gradient norm are {theirs.tolist()}, where 0 compares nothing")
    error = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
    if not error <= _TOLERANCE:
        raise Disagreement(f"{name}: loss and gradient norm are {ours.tolist()}, the peer's {theirs.tolist()}")
    return f"loss and gradient norm equal the peer's within {error:.1e}"
