"""The work that trains the ID generator, on the batches that a run would have."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from idgenrec_jax.benchmark.peer import differences, write_job
from idgenrec_jax.benchmark.training_steps import (
    RATE,
    Steps,
    benchmark_optimizer,
    compare_losses,
    count_choices,
    optimizer_fields,
)
from idgenrec_jax.benchmark.work import Work
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.models import operations
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.processes import put
from idgenrec_jax.sharding import replicated_beside
from idgenrec_jax.training.choice_softmax import choice_table
from idgenrec_jax.training.id_loss import id_loss
from idgenrec_jax.training.soft_ids import tokens_without_embedding
from idgenrec_jax.training.steps import make_id_step


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
    takes the first `num_peer_examples` of the same examples. Its recommender's softmax is over the vocabulary, and its
    histories are not causal: its loss is compared with ours of that kind. `settings` go into its job as they are
    (threads, device, dtype).
    """
    config, recommender = experiment.config, experiment.recommender
    id_generator = experiment.id_generator
    if id_generator.config.tie_word_embeddings and not id_generator.pretrained:
        id_generator = dataclasses.replace(id_generator, params=_writing_params(id_generator.params))
    renderer = experiment.ids.renderer(max_history=config.data.id_max_history)
    published = dataclasses.replace(renderer, over_catalogue=False, is_causal=False)
    choices = (
        put(choice_table(renderer.choices), replicated_beside(recommender.params)) if config.over_catalogue else None
    )
    plan = _id_batches(experiment, renderer, config.training.id_batch_size, config.training.id_items_per_batch)
    batches = [plan.batch(step) for step in range(min(num_steps, len(plan)))]
    examples = [example for step in range(len(batches)) for example in plan.examples(step)]
    compared = _id_batches(experiment, published, peer_batch_size, peer_batch_size * renderer.max_history)
    fullest = max(range(len(compared)), key=lambda step: len(compared.examples(step)))
    punctuation_ids = experiment.inputs.tokenizer.punctuation_ids
    no_embedding = tokens_without_embedding(punctuation_ids, recommender.config.vocab_size)
    length = config.ids.soft_length
    step = make_id_step(
        id_generator.graphdef,
        recommender.graphdef,
        benchmark_optimizer(experiment),
        jnp.asarray(no_embedding),
        length,
        chunks=config.training.id_chunks,
    )
    train = Steps(
        experiment,
        id_generator,
        lambda state, batch, key: step(state, recommender.params, batch, RATE, key, choices),
        plan,
        len(batches),
    )

    def job(folder: Path) -> None:
        fields = optimizer_fields(experiment) | {
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
            tokens, slot_item, slot_position, _, kept = published.slots(user, sequence[:position], template, length)
            prompts.append(tokens)
            slot_items += slot_item
            slot_positions += slot_position
            histories.append(kept)
            targets.append(published.target(int(sequence[position]), template))
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
        return compare_losses(
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
    logits, columns = targets, None
    if choices is not None:
        of_batches = [batch.choices for batch in batches if batch.choices is not None]
        logits, columns = sum(map(count_choices, of_batches)), len(renderer.choices.tokens)
    total_operations = (
        _writing_operations(id_generator.config, count, length, texts / count)
        + _frozen_operations(recommender.config, len(examples), prompts / len(examples), targets / len(examples))
        + operations.FROZEN * operations.output_operations(recommender.config, logits, columns)
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
        differences=differences(renderer),
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
    """The operations of a frozen recommender and its gradient by the prompt's embeddings, without logits."""
    return operations.FROZEN * (
        operations.encoder_operations(config, examples * prompt, prompt)
        + operations.cross_operations(config, examples * prompt)
        + operations.decoder_operations(config, examples * target, target / 2, prompt)
    )


def _id_batches(experiment: Experiment, renderer: PromptRenderer, batch_size: int, items_per_batch: int) -> IdBatches:
    """The batches of the first ID epoch, of at most so many examples and distinct items."""
    training = experiment.config.training
    texts = experiment.inputs.text_tokens
    shared: dict[str, Any] = {"seed": training.seed, "id_length": experiment.config.ids.soft_length}
    limits = {"batch_size": batch_size, "items_per_batch": items_per_batch, "row_multiple": training.id_chunks}
    shape = id_shape(renderer, texts, **limits, **shared)
    return IdBatches(renderer, texts, epoch=0, num_examples=training.id_examples_per_epoch, shape=shape, **shared)
