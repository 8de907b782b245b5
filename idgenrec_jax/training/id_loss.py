"""The ID loss: the recommender's loss on prompts whose history is spelled in the ID generator's soft IDs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.models.layers import DropoutKey
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.training.segments import count_tokens, mean_loss, same_segment, segment_loss, split_rows
from idgenrec_jax.training.soft_ids import generate_soft_ids, without_gradient
from idgenrec_jax.training.vocabulary_attention import DEFAULT_BLOCK_SIZE


def id_loss(
    id_generator: T5,
    recommender: T5,
    batch: IdBatch,
    no_embedding: Bool[Array, " vocab"],
    *,
    id_length: int,
    dropout_key: DropoutKey | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    chunks: int = 1,
) -> Float[Array, ""]:
    """Return the recommender's loss on prompts whose history is spelled in the generator's soft IDs.

    Differentiable in the generator's parameters only: every parameter of the recommender is under stop_gradient.
    `no_embedding` marks the punctuation tokens, which leave no trace in an ID. `id_length` is the longest ID in
    tokens, EOS included. `dropout_key` drops out in the generator's differentiated pass; the greedy IDs and the
    recommender are deterministic. `chunks`, of which the rows of texts and of prompts are a multiple, is how many parts
    of them are computed one after the other, and once more for the gradient: more time, less memory. DESIGN, "ID loss".
    """
    soft_ids = generate_soft_ids(
        id_generator,
        recommender.shared.table[...],
        batch.item_tokens,
        batch.item_segments,
        batch.item_places,
        no_embedding,
        id_length=id_length,
        dropout_key=dropout_key,
        block_size=block_size,
        chunks=chunks,
    )
    return loss_of_soft_ids(recommender, soft_ids.embeddings, soft_ids.mask, batch, chunks=chunks)


def loss_of_soft_ids(
    recommender: T5,
    embeddings: Float[Array, "items length d_model"],
    mask: Bool[Array, "items length"],
    batch: IdBatch,
    *,
    chunks: int = 1,
) -> Float[Array, ""]:
    """Return the frozen recommender's cross-entropy of the targets, given the embeddings of the items' IDs.

    With the recommender's own embedding rows as `embeddings` this is the loss of the discrete prompt. `chunks` is that
    of `id_loss`.
    """
    recommender = without_gradient(recommender)

    def total_loss(rows):
        *prompts, target_tokens, target_segments = rows
        prompt, segments = place_ids(recommender, embeddings, mask, *prompts)
        encoded = recommender.encode(None, same_segment(segments, segments), embeddings=prompt)
        return segment_loss(recommender, encoded, segments, target_tokens, target_segments, None)

    rows = (
        batch.prompt_tokens,
        batch.prompt_segments,
        batch.slot_item,
        batch.slot_position,
        batch.target_tokens,
        batch.target_segments,
    )
    parts = split_rows(rows, chunks)
    total = total_loss(rows) if chunks == 1 else jax.lax.map(jax.checkpoint(total_loss), parts).sum()
    return mean_loss(total, count_tokens(batch.target_segments))


def place_ids(
    recommender: T5,
    embeddings: Float[Array, "items length d_model"],
    mask: Bool[Array, "items length"],
    prompt_tokens: Int[Array, "rows source"],
    prompt_segments: Int[Array, "rows source"],
    slot_item: Int[Array, "rows source"],
    slot_position: Int[Array, "rows source"],
) -> tuple[Float[Array, "rows source d_model"], Int[Array, "rows source"]]:
    """Embed the prompts with the ID embeddings in their slots, and return them with their segments.

    Slots that carry nothing move behind the kept positions, whose order stays: a discrete prompt has no holes, and the
    recommender's relative positions must equal the discrete prompt's.
    """
    is_slot = slot_item >= 0
    item = jnp.maximum(slot_item, 0)
    kept = (prompt_segments > 0) & jnp.where(is_slot, mask[item, slot_position], True)
    order = jnp.argsort(~kept, axis=-1, stable=True)

    def reorder(values):
        return jnp.take_along_axis(values, order, axis=-1)

    # The integers are put in order, not the embeddings: one gather of rows instead of two.
    soft_rows = embeddings[reorder(item), reorder(slot_position)]
    token_rows = recommender.embed(reorder(prompt_tokens))
    placed = jnp.where(reorder(is_slot)[..., None], soft_rows.astype(token_rows.dtype), token_rows)
    return placed, reorder(jnp.where(kept, prompt_segments, 0))
