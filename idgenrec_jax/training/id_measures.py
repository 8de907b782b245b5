"""What an ID phase did: how many IDs it changed, and what its soft IDs promised against what the new words keep.

An ID phase trains a mixture of words. What is used afterwards is one discrete ID, cleaned and made unique. The loss of
the same training examples under the old words, the mixture and the new words tells one from the other; their targets
are the old IDs throughout, as they are in training.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.id_batches import IdBatch, IdBatches
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.training.choice_softmax import ChoiceTable
from idgenrec_jax.training.id_loss import generate_soft_ids, loss_of_soft_ids
from idgenrec_jax.training.segments import on_device

TokenIds = Sequence[Sequence[int]]
_NO_TOKEN = -1


class HistoryLosses(NamedTuple):
    """The recommender's mean loss on the same examples, their histories spelled in one kind of ID or another."""

    old_ids: float
    soft_ids: float
    new_ids: float


class IdMeasures:
    """Measures ID phases; compiled once per shape of batch."""

    def __init__(
        self,
        id_generator: nnx.GraphDef,
        recommender: nnx.GraphDef,
        no_embedding: Bool[Array, " vocab"],
        *,
        soft_length: int,
        place_batch: Callable[[Any], Any],
        read: Callable[[Any], Any],
    ):
        """Prepare the losses; `soft_length` is the length of soft IDs in tokens, EOS included."""
        self._place_batch, self._read = place_batch, read

        def losses(
            generator_params: Any,
            recommender_params: Any,
            batch: IdBatch,
            words: tuple[Int[Array, "items length"], Int[Array, "items length"]],
            choices: ChoiceTable | None,
        ) -> Float[Array, " 3"]:
            reader = nnx.merge(recommender, recommender_params)
            texts, segments, places = on_device((batch.item_tokens, batch.item_segments, batch.item_places))
            soft = generate_soft_ids(
                nnx.merge(id_generator, generator_params),
                reader.shared.table[...],
                texts,
                segments,
                places,
                no_embedding,
                id_length=soft_length,
            )
            old, new = on_device(words)
            # Their slots have the length of the longest ID. [items, soft_length, ..] -> [items, length, ..]
            room = ((0, 0), (0, max(0, old.shape[1] - soft_length)))
            embeddings = jnp.pad(soft.embeddings, (*room, (0, 0)))[:, : old.shape[1]]
            spelled = [
                _spelled(reader, old), (embeddings, jnp.pad(soft.mask, room)[:, : old.shape[1]]), _spelled(reader, new)
            ]  # fmt: skip
            return jnp.stack([loss_of_soft_ids(reader, *of_kind, batch, choices=choices) for of_kind in spelled])

        self._losses = jax.jit(losses)

    def losses(
        self,
        generator_params: Any,
        recommender_params: Any,
        batches: IdBatches,
        choices: ChoiceTable | None,
        old: TokenIds,
        new: TokenIds,
    ) -> HistoryLosses:
        """Return the losses on `batches`, whose slots hold the longest of the `old` and `new` IDs."""
        length = batches.id_length
        tables = [_as_table(ids, length) for ids in (old, new)]
        sums, examples = np.zeros(3), 0
        for step in range(len(batches)):
            batch, items = batches.batch(step), batches.items(step).reshape(-1)
            # Without a token where a place is free. [places] -> [places, length]
            words = tuple(np.where(items[:, None] >= 0, table[items], _NO_TOKEN) for table in tables)
            placed = self._place_batch((batch, words))
            found = self._read(self._losses(generator_params, recommender_params, *placed, choices))
            count = len(batches.examples(step))
            sums, examples = sums + count * np.asarray(found, np.float64), examples + count
        return HistoryLosses(*(sums / max(examples, 1)).tolist())


def longest_id(*tables: TokenIds) -> int:
    """Return the most tokens of any ID, its end included."""
    return 1 + max(len(tokens) for table in tables for tokens in table)


def changed(old: TokenIds, new: TokenIds) -> dict[str, int]:
    """Return how many IDs differ, and in how many of their tokens; a token that one of both lacks is one."""
    differing = [(tuple(one), tuple(other)) for one, other in zip(old, new, strict=True) if tuple(one) != tuple(other)]
    tokens = sum(
        abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False)) for one, other in differing
    )
    return {"ids_changed": len(differing), "tokens_changed": tokens}


def _as_table(ids: TokenIds, length: int) -> Int[np.ndarray, "items length"]:
    table = np.full((len(ids), length), _NO_TOKEN, np.int32)
    for row, tokens in zip(table, ids, strict=True):
        row[: len(tokens)] = tokens
    return table


def _spelled(
    recommender: T5, words: Int[Array, "items length"]
) -> tuple[Float[Array, "items length d_model"], Bool[Array, "items length"]]:
    """The embeddings of discrete IDs, and which positions hold a token."""
    return recommender.embed(jnp.maximum(words, 0)), words != _NO_TOKEN
