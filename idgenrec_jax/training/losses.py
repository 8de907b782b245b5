"""The two losses: the recommender's (supervised cross-entropy) and the ID generator's (DESIGN, "ID loss")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import RecommenderBatch
from idgenrec_jax.decoding.beam import greedy_search
from idgenrec_jax.models.layers import BatchPart, DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right
from idgenrec_jax.training.vocabulary_attention import DEFAULT_BLOCK_SIZE, soft_embedding
from idgenrec_jax.training.vocabulary_cross_entropy import weighted_cross_entropy

_GREEDY_TOKENS = "greedy tokens"


class SoftIds(NamedTuple):
    """The IDs of a batch's distinct items: soft embeddings, the greedy tokens, and which positions carry anything."""

    embeddings: Float[Array, "items length d_model"]
    mask: Bool[Array, "items length"]
    tokens: Int[Array, "items length"]


def token_cross_entropy(
    hidden: Float[Array, "batch target d_model"],
    table: Float[Array, "vocab d_model"],
    targets: Int[Array, "batch target"],
    weights: Float[Array, "batch target"],
) -> Float[Array, ""]:
    """Return the weighted mean of the tokens' negative log-likelihoods in nats, float32; 0 where all weights are 0.

    The logits are `hidden @ table.T`.
    """
    total = weights.sum()
    return weighted_cross_entropy(hidden, table, targets, weights) / jnp.where(total > 0, total, 1.0)


def recommender_loss(
    model: T5,
    batch: RecommenderBatch,
    dropout_key: DropoutKey | None = None,
    *,
    part: BatchPart | None = None,
    num_tokens: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the target tokens given the prompts, in nats per real token.

    Examples that share a row do not see each other. `dropout_key=None` means no dropout. Where `batch` is a `part` of
    a larger one, as from `split_batch`, the mean is over the `num_tokens` tokens of that one: the parts' losses add up.
    """
    encoder_key, decoder_key = _split_key(dropout_key)
    segments = batch.prompt_segments
    encoded = model.encode(batch.prompt_tokens, _same_segment(segments, segments), dropout_key=encoder_key, part=part)
    total = _segment_loss(
        model, encoded, segments, batch.target_tokens, batch.target_segments, decoder_key, part=part
    )
    return _mean_loss(total, count_tokens(batch.target_segments) if num_tokens is None else num_tokens)


def split_batch(batch: RecommenderBatch, parts: int) -> RecommenderBatch:
    """Return the batch with its arrays as [parts, rows / parts, ..], each part the rows of a `BatchPart`."""
    return RecommenderBatch(*_split_rows(batch, parts))


def count_tokens(segments: Int[Array, "rows positions"]) -> Float[Array, ""]:
    """Return how many positions are not padding."""
    return _is_real(segments).sum()


def target_loss(
    model: T5,
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
    target_tokens: Int[Array, "batch target"],
    target_mask: Bool[Array, "batch target"],
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the targets given encoded prompts, in nats per real token, one example a row."""
    decoder_inputs = shift_right(target_tokens, model.config.decoder_start_token_id)
    hidden = model.decode(decoder_inputs, encoded, encoder_mask)
    return token_cross_entropy(hidden, model.output_table, target_tokens, target_mask.astype(jnp.float32))


def id_loss(
    generator: T5,
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
        generator,
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


def generate_soft_ids(
    generator: T5,
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
) -> SoftIds:
    """Write each item's ID greedily and return its softmax-weighted mean of `table`, differentiable in the generator.

    The texts are packed as in `IdBatch`; the items are its places, row by row, and that of a free place means nothing.
    The greedy tokens come from a loop without gradient; one teacher-forced pass over them gives the same
    logits with gradient. Without dropout the two share one encoder pass. `chunks` is that of `id_loss`.

    Raises ValueError when the generator's vocabulary is not that of `table`.
    """
    if generator.output_table.shape[0] != table.shape[0]:
        raise ValueError(
            f"the generator's vocabulary has {generator.output_table.shape[0]} tokens, the recommender's "
            f"{table.shape[0]}; soft IDs need one vocabulary for both"
        )

    def write(rows, key):
        return _write(generator, table, *rows, id_length=id_length, dropout_key=key, block_size=block_size)

    def write_chunk(part):
        chunk, rows = part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, chunk)
        return tuple(values.reshape(*rows[-1].shape, *values.shape[1:]) for values in write(rows, key))

    rows = item_tokens, item_segments, item_places
    if chunks == 1:
        embeddings, tokens = write(rows, dropout_key)
    else:
        remember = jax.checkpoint_policies.save_only_these_names(_GREEDY_TOKENS)
        parts = jnp.arange(chunks), _split_rows(rows, chunks)
        written = jax.lax.map(jax.checkpoint(write_chunk, policy=remember), parts)
        embeddings, tokens = (_join_rows(values).reshape(-1, *values.shape[3:]) for values in written)
    mask = carries_embedding(tokens, no_embedding, generator.config.eos_token_id, generator.config.pad_token_id)
    return SoftIds(embeddings, mask, tokens)


def _write(
    generator: T5,
    table: Float[Array, "vocab d_embed"],
    item_tokens: Int[Array, "rows text"],
    item_segments: Int[Array, "rows text"],
    item_places: Int[Array, "rows places"],
    *,
    id_length: int,
    dropout_key: DropoutKey | None,
    block_size: int,
) -> tuple[Float[Array, "items length d_embed"], Int[Array, "items length"]]:
    """Return the soft embeddings and the greedy tokens of some rows' items."""
    encoder_key, decoder_key = _split_key(dropout_key)
    own_segment = _same_segment(item_segments, item_segments)
    encoded = generator.encode(item_tokens, own_segment, dropout_key=encoder_key)
    frozen = without_gradient(generator)
    greedy_encoded = encoded if dropout_key is None else frozen.encode(item_tokens, own_segment)
    text_mask = _same_segment(item_places, item_segments)
    tokens = greedy_ids(frozen, jax.lax.stop_gradient(greedy_encoded), text_mask, id_length=id_length)
    tokens = checkpoint_name(tokens, _GREEDY_TOKENS)

    # The IDs of a row's items stand one after the other, each with a start token and blind to the others.
    inputs = shift_right(tokens, generator.config.decoder_start_token_id).reshape(item_places.shape[0], -1)
    place = jnp.arange(inputs.shape[1]) // id_length
    hidden = generator.decode(
        inputs,
        encoded,
        jnp.repeat(text_mask, id_length, axis=1),
        decoder_mask=jnp.broadcast_to(place[:, None] == place[None, :], (*inputs.shape, inputs.shape[1])),
        dropout_key=decoder_key,
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    embeddings = soft_embedding(flat, generator.output_table, table, block_size=block_size)
    return embeddings.reshape(*tokens.shape, table.shape[1]), tokens


def greedy_ids(
    generator: T5,
    encoded: Float[Array, "rows text d_model"],
    text_mask: Bool[Array, "rows places text"],
    *,
    id_length: int,
) -> Int[Array, "items length"]:
    """Decode `id_length` tokens per item greedily from its encoded text: EOS kept, padding after it.

    `text_mask` tells which positions of a row are the text of the item in each of its places; the items are all places,
    row by row.
    """
    config = generator.config
    rows, places, _ = text_mask.shape
    # Start token and tokens fill `id_length` decoder inputs: the last token is written, never read.
    cache = generator.start_decoding(
        encoded, text_mask, num_beams=places, group_size=1, max_length=max(1, id_length - 1)
    )

    def step(tokens, position, cache):
        hidden, written = generator.decode_step(tokens, position, cache)
        return generator.logits(hidden), written

    tokens = greedy_search(
        step,
        cache,
        batch_size=rows,
        sequences_per_row=places,
        max_length=id_length + 1,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        start_token_id=config.decoder_start_token_id,
    )
    return tokens.reshape(rows * places, id_length)


def carries_embedding(
    tokens: Int[Array, "items length"], no_embedding: Bool[Array, " vocab"], eos_token_id: int, pad_token_id: int
) -> Bool[Array, "items length"]:
    """Tell which positions of an ID are part of it: those before EOS that are neither padding nor punctuation."""
    ended = jnp.cumsum(tokens == eos_token_id, axis=-1) > 0
    return ~ended & (tokens != pad_token_id) & ~no_embedding[tokens]


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
        encoded = recommender.encode(None, _same_segment(segments, segments), embeddings=prompt)
        return _segment_loss(recommender, encoded, segments, target_tokens, target_segments, None)

    rows = (
        batch.prompt_tokens,
        batch.prompt_segments,
        batch.slot_item,
        batch.slot_position,
        batch.target_tokens,
        batch.target_segments,
    )
    if chunks == 1:
        total = total_loss(rows)
    else:
        total = jax.lax.map(jax.checkpoint(total_loss), _split_rows(rows, chunks)).sum()
    return _mean_loss(total, count_tokens(batch.target_segments))


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


def without_gradient(model: T5) -> T5:
    """Return the same model with every parameter under stop_gradient."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))


def _segment_loss(
    model: T5,
    encoded: Float[Array, "rows source d_model"],
    prompt_segments: Int[Array, "rows source"],
    target_tokens: Int[Array, "rows target"],
    target_segments: Int[Array, "rows target"],
    dropout_key: DropoutKey | None,
    *,
    part: BatchPart | None = None,
) -> Float[Array, ""]:
    """Return the summed cross-entropy of the target tokens, each given the encoded prompt of its segment."""
    start = model.config.decoder_start_token_id
    is_first = target_segments != shift_right(target_segments, 0)
    hidden = model.decode(
        jnp.where(is_first, start, shift_right(target_tokens, start)),
        encoded,
        _same_segment(target_segments, prompt_segments),
        decoder_mask=_same_segment(target_segments, target_segments),
        dropout_key=dropout_key,
        part=part,
    )
    return weighted_cross_entropy(hidden, model.output_table, target_tokens, _is_real(target_segments))


def _mean_loss(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return a summed cross-entropy per real target token; 0 where there is none."""
    return total / jnp.where(count > 0, count, 1.0)


def _is_real(segments: Int[Array, "rows positions"]) -> Float[Array, "rows positions"]:
    return (segments > 0).astype(jnp.float32)


def _split_rows(rows: tuple[Array, ...], chunks: int) -> tuple[Array, ...]:
    """Return arrays of rows [rows, ...] as [chunks, rows / chunks, ...], a device's rows spread over all chunks."""
    return tuple(jnp.swapaxes(values.reshape(-1, chunks, *values.shape[1:]), 0, 1) for values in rows)


def _join_rows(values: Array) -> Array:
    """Undo `_split_rows`."""
    return jnp.swapaxes(values, 0, 1).reshape(-1, *values.shape[2:])


def _same_segment(
    queries: Int[Array, "rows queries"], keys: Int[Array, "rows keys"]
) -> Bool[Array, "rows queries keys"]:
    """Tell which pairs of positions belong to one example; padding belongs to none."""
    return (queries[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :]


def _split_key(dropout_key: DropoutKey | None) -> tuple[DropoutKey | None, DropoutKey | None]:
    """Return one dropout key for the encoder and one for the decoder, or none for either."""
    if dropout_key is None:
        return None, None
    return jax.random.fold_in(dropout_key, 0), jax.random.fold_in(dropout_key, 1)
