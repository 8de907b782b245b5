"""Terms that may be added to the ID loss: a leash on the ID generator, and IDs that begin like those of neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import round_up
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.training.segments import on_device, same_segment
from idgenrec_jax.training.soft_ids import hidden_behind, without_gradient
from idgenrec_jax.training.vocabulary_attention import product
from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy

_TOKENS_AT_ONCE = 256


class IdTerms(NamedTuple):
    """How the ID loss differs from the published one; by default not at all.

    `straight_through`: prompts are read with the words of greedy IDs, and the gradient of soft ones. `leash` and
    `neighbour_weight` are the weights of the terms below, 0: they are left out.
    """

    straight_through: bool = False
    leash: float = 0.0
    neighbour_weight: float = 0.0


PUBLISHED = IdTerms()


def added_terms(
    id_generator: T5, reference: T5 | None, tokens: Int[Array, "items length"], batch: IdBatch, terms: IdTerms
) -> Iterator[Float[Array, ""]]:
    """Yield the weighted terms that are not left out; `tokens` are the greedy IDs of the batch's places, row by row.

    Raises ValueError for a leash without a `reference`, or neighbours that the batch does not have.
    """
    if not terms.leash and not terms.neighbour_weight:
        return
    texts, segments, places, neighbours = on_device(
        (batch.item_tokens, batch.item_segments, batch.item_places, batch.neighbour_tokens)
    )
    own_segment, text_mask = same_segment(segments, segments), same_segment(places, segments)
    # [items, length] -> [rows, places, length]
    placed = tokens.reshape(*places.shape, -1)
    encoded = id_generator.encode(texts, own_segment)
    hidden = hidden_behind(id_generator, encoded, text_mask, placed)
    if terms.leash:
        if reference is None:
            raise ValueError("a leash needs the ID generator that it holds to")
        held = without_gradient(reference)
        held_hidden = hidden_behind(held, held.encode(texts, own_segment), text_mask, placed)
        apart = divergences(held_hidden, held.output_table, hidden, id_generator.output_table)
        # Up to the end of each ID of a real item. [rows, places, length]
        counts = (placed != id_generator.config.pad_token_id) & (places > 0)[..., None]
        yield terms.leash * (apart * counts).sum() / jnp.maximum(counts.sum(), 1)
    if terms.neighbour_weight:
        if neighbours is None:
            raise ValueError("the batch has no first tokens of neighbours' IDs")
        # The first token is written behind the start token. [rows, places]
        has_neighbour = (neighbours >= 0).astype(jnp.float32)
        first = jnp.maximum(neighbours, 0)
        total = weighted_cross_entropy(hidden[:, :, 0], id_generator.output_table, first, has_neighbour)
        yield terms.neighbour_weight * total / jnp.maximum(has_neighbour.sum(), 1)


def divergences(
    held_hidden: Float[Array, "*tokens d_model"],
    held_table: Float[Array, "vocab d_model"],
    hidden: Float[Array, "*tokens d_model"],
    table: Float[Array, "vocab d_model"],
) -> Float[Array, " *tokens"]:
    """Return the Kullback-Leibler divergence of the next token, in nats, from the held distribution to the other.

    Some tokens at a time, so that [tokens, vocab] is never stored.
    """

    @jax.checkpoint
    def of_some(pair):
        held, now = (
            jax.nn.log_softmax(product(states, rows)) for states, rows in zip(pair, (held_table, table), strict=True)
        )
        # [tokens, vocab] -> [tokens]
        return (jnp.exp(held) * (held - now)).sum(axis=-1)

    shape = hidden.shape[:-1]
    count = hidden.size // hidden.shape[-1]
    padded = round_up(count, min(_TOKENS_AT_ONCE, count))
    # [*tokens, d_model] -> [parts, tokens at once, d_model]
    flat = [
        jnp.pad(states.reshape(count, -1), ((0, padded - count), (0, 0))).reshape(
            -1, min(_TOKENS_AT_ONCE, count), states.shape[-1]
        )
        for states in (held_hidden, hidden)
    ]
    return jax.lax.map(of_some, tuple(flat)).reshape(-1)[:count].reshape(shape)
