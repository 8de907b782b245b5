"""The ID loss, from which the ID generator learns: how well do the IDs that it writes serve the recommender?

The ID generator's training objective of IDGenRec (arXiv 2403.19021), with probabilities for its log-probabilities.
With h the ID generator's hidden states, W its output embeddings and E the recommender's input embeddings:

    p    = softmax(h W)               the ID generator's distribution over the vocabulary, for each token of an ID
    soft = p stop_gradient(E)         the ID as the recommender would read it, were p certain of one word
    loss = cross-entropy of the next item's ID, given the prompt whose history is spelled in soft IDs,
           by the recommender, all of whose parameters are frozen

`generate_soft_ids` is the first two lines, `loss_of_soft_ids` the third. What may be changed of it (temperature,
straight-through) and added to it (`id_terms`) is off by default.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.models.layers import DropoutKey
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.training.choice_softmax import ChoiceTable, choice_cross_entropy
from idgenrec_jax.training.id_terms import PUBLISHED, IdTerms, added_terms
from idgenrec_jax.training.segments import (
    causal_mask,
    count_targets,
    count_tokens,
    decode_targets,
    is_real,
    mean_loss,
    on_device,
    rows_in_chunks,
    same_segment,
    sum_in_chunks,
)
from idgenrec_jax.training.soft_ids import (
    GREEDY_TOKENS,
    SoftIds,
    carries_embedding,
    place_ids,
    without_gradient,
    write_ids,
)
from idgenrec_jax.training.vocabulary_attention import DEFAULT_BLOCK_SIZE, soft_embedding
from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy


def id_loss(
    id_generator: T5,
    recommender: T5,
    batch: IdBatch,
    no_embedding: Bool[Array, " vocab"],
    *,
    id_length: int,
    choices: ChoiceTable | None = None,
    dropout_key: DropoutKey | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    chunks: int = 1,
    temperature: Float[Array, ""] | None = None,
    terms: IdTerms = PUBLISHED,
    reference: T5 | None = None,
) -> Float[Array, ""]:
    """Return the recommender's loss on prompts whose history is spelled in the ID generator's soft IDs.

    Differentiable in the ID generator's parameters only. `no_embedding` marks the punctuation tokens, which leave no
    trace in an ID. `id_length` is the longest ID in tokens, EOS included. With `choices`, those of the catalogue, the
    loss is the recommender's over the catalogue, in nats per item; without, over the vocabulary, per token.
    `dropout_key` drops out in the ID generator's differentiated pass; the greedy IDs and the recommender are
    deterministic. `chunks`, of which the rows of texts and of prompts are a multiple, is how many parts of them are
    computed one after the other (see `rows_in_chunks`). `temperature` (None: 1) divides the logits of soft IDs. `terms`
    says what is added; its leash holds the ID generator to the `reference`.
    """
    soft_ids = generate_soft_ids(
        id_generator,
        recommender.shared.table[...],
        jnp.asarray(batch.item_tokens),
        jnp.asarray(batch.item_segments),
        jnp.asarray(batch.item_places),
        no_embedding,
        id_length=id_length,
        dropout_key=dropout_key,
        block_size=block_size,
        chunks=chunks,
        temperature=temperature,
        straight_through=terms.straight_through,
    )
    loss = loss_of_soft_ids(recommender, soft_ids.embeddings, soft_ids.mask, batch, choices=choices, chunks=chunks)
    for added in added_terms(id_generator, reference, soft_ids.tokens, batch, terms):
        loss = loss + added
    return loss


def generate_soft_ids(
    id_generator: T5,
    table: Float[Array, "vocab d_embed"],
    item_tokens: Int[Array, "rows text"],
    item_segments: Int[Array, "rows text"],
    item_places: Int[Array, "rows places"],
    no_embedding: Bool[Array, " vocab"],
    *,
    id_length: int,
    dropout_key: DropoutKey | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    chunks: int = 1,
    temperature: Float[Array, ""] | None = None,
    straight_through: bool = False,
) -> SoftIds:
    """Return each item's ID as the mean of `table`'s rows under the ID generator's probabilities.

    The texts are packed as in `IdBatch`; the items are its places, row by row, and that of a free place means nothing.
    `temperature` divides the logits. With `straight_through` the value is the row of the greedy token, the gradient
    that of the mean.

    Raises ValueError when the ID generator's vocabulary is not that of `table`.
    """
    W, E = id_generator.output_table, jax.lax.stop_gradient(table)
    if len(W) != len(E):
        raise ValueError(
            f"the ID generator's vocabulary has {len(W)} tokens, the recommender's {len(E)}; soft IDs need one "
            "vocabulary for both"
        )

    def soft_ids(texts, key):
        # [rows, text] -> h: [rows, places, length, d_model]; the greedy tokens [rows, places, length] have no gradient.
        h, tokens = write_ids(id_generator, *texts, id_length=id_length, dropout_key=key)
        # p = softmax(h W): [rows, places, length, vocab]; soft = p E: -> [rows, places, length, d_embed].
        # Block by block of the vocabulary, so that p is never stored; by test equal to `dense_soft_embedding`.
        if temperature is not None:
            h = h / temperature.astype(h.dtype)
        soft = soft_embedding(h, W, E, block_size=block_size)
        if straight_through:
            soft = E[tokens].astype(soft.dtype) + soft - jax.lax.stop_gradient(soft)
        return soft, tokens

    texts = item_tokens, item_segments, item_places
    written = rows_in_chunks(soft_ids, texts, chunks, dropout_key, remember=(GREEDY_TOKENS,))
    # [rows, places, ..] -> [items, ..]
    soft, tokens = (values.reshape(-1, *values.shape[2:]) for values in written)
    config = id_generator.config
    return SoftIds(soft, carries_embedding(tokens, no_embedding, config.eos_token_id, config.pad_token_id), tokens)


def loss_of_soft_ids(
    recommender: T5,
    embeddings: Float[Array, "items length d_model"],
    mask: Bool[Array, "items length"],
    batch: IdBatch,
    *,
    choices: ChoiceTable | None = None,
    chunks: int = 1,
) -> Float[Array, ""]:
    """Return the frozen recommender's cross-entropy of the targets, given the embeddings of the items' IDs.

    With the recommender's own embedding rows as `embeddings` this is the loss of the discrete prompt. `choices` are
    those of `id_loss`.
    """
    recommender = without_gradient(recommender)

    def total_loss(rows: Any) -> Float[Array, ""]:
        (part,) = rows
        slots = part.prompt_tokens, part.prompt_segments, part.slot_item, part.slot_position
        # [items, length, d_model] into the slots of [rows, source] -> [rows, source, d_model].
        prompt, segments, items = place_ids(recommender, embeddings, mask, *slots, part.prompt_items)
        encoded = recommender.encode(None, causal_mask(same_segment(segments, segments), items), embeddings=prompt)
        placed = SupervisedBatch(part.prompt_tokens, segments, part.target_tokens, part.target_segments)
        # -> [rows, target, d_model]
        hidden = decode_targets(recommender, encoded, placed)
        if choices is not None:
            return choice_cross_entropy(hidden, recommender.output_table, choices, part.choices).sum()
        # The logits are read in chunks, so that [rows, target, vocab] is never stored.
        weights = is_real(part.target_segments)
        return weighted_cross_entropy(hidden, recommender.output_table, part.target_tokens, weights)

    read = on_device(batch)
    # The texts are packed into rows of their own.
    prompts = read._replace(item_tokens=None, item_segments=None, item_places=None)
    total = sum_in_chunks(total_loss, (prompts,), chunks)
    segments = read.target_segments
    return mean_loss(total, count_tokens(segments) if choices is None else count_targets(segments, None))
