"""The soft IDs of a batch's items: written by the ID generator, greedily without and once more with gradient."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.decoding.beam import greedy_search
from idgenrec_jax.models.layers import DropoutKey
from idgenrec_jax.models.t5 import T5, shift_right
from idgenrec_jax.training.segments import join_rows, same_segment, split_key, split_rows
from idgenrec_jax.training.vocabulary_attention import DEFAULT_BLOCK_SIZE, soft_embedding

_GREEDY_TOKENS = "greedy tokens"


class SoftIds(NamedTuple):
    """The IDs of a batch's distinct items: soft embeddings, the greedy tokens, and which positions carry anything."""

    embeddings: Float[Array, "items length d_model"]
    mask: Bool[Array, "items length"]
    tokens: Int[Array, "items length"]


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
) -> SoftIds:
    """Write each item's ID greedily and return its softmax-weighted mean of `table`, differentiable in the generator.

    The texts are packed as in `IdBatch`; the items are its places, row by row, and that of a free place means nothing.
    The greedy tokens come from a loop without gradient; one teacher-forced pass over them gives the same
    logits with gradient. Without dropout the two share one encoder pass. `chunks` is that of `id_loss`.

    Raises ValueError when the generator's vocabulary is not that of `table`.
    """
    if id_generator.output_table.shape[0] != table.shape[0]:
        raise ValueError(
            f"the generator's vocabulary has {id_generator.output_table.shape[0]} tokens, the recommender's "
            f"{table.shape[0]}; soft IDs need one vocabulary for both"
        )

    def write(rows, key):
        return _write(id_generator, table, *rows, id_length=id_length, dropout_key=key, block_size=block_size)

    def write_chunk(part):
        chunk, rows = part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, chunk)
        return tuple(values.reshape(*rows[-1].shape, *values.shape[1:]) for values in write(rows, key))

    rows = item_tokens, item_segments, item_places
    if chunks == 1:
        embeddings, tokens = write(rows, dropout_key)
    else:
        remember = jax.checkpoint_policies.save_only_these_names(_GREEDY_TOKENS)
        parts = jnp.arange(chunks), split_rows(rows, chunks)
        written = jax.lax.map(jax.checkpoint(write_chunk, policy=remember), parts)
        embeddings, tokens = (join_rows(values).reshape(-1, *values.shape[3:]) for values in written)
    mask = carries_embedding(tokens, no_embedding, id_generator.config.eos_token_id, id_generator.config.pad_token_id)
    return SoftIds(embeddings, mask, tokens)


def _write(
    id_generator: T5,
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
    encoder_key, decoder_key = split_key(dropout_key)
    own_segment = same_segment(item_segments, item_segments)
    encoded = id_generator.encode(item_tokens, own_segment, dropout_key=encoder_key)
    frozen = without_gradient(id_generator)
    greedy_encoded = encoded if dropout_key is None else frozen.encode(item_tokens, own_segment)
    text_mask = same_segment(item_places, item_segments)
    tokens = greedy_ids(frozen, jax.lax.stop_gradient(greedy_encoded), text_mask, id_length=id_length)
    tokens = checkpoint_name(tokens, _GREEDY_TOKENS)

    # The IDs of a row's items stand one after the other, each with a start token and blind to the others.
    inputs = shift_right(tokens, id_generator.config.decoder_start_token_id).reshape(item_places.shape[0], -1)
    place = jnp.arange(inputs.shape[1]) // id_length
    hidden = id_generator.decode(
        inputs,
        encoded,
        jnp.repeat(text_mask, id_length, axis=1),
        decoder_mask=jnp.broadcast_to(place[:, None] == place[None, :], (*inputs.shape, inputs.shape[1])),
        dropout_key=decoder_key,
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    embeddings = soft_embedding(flat, id_generator.output_table, table, block_size=block_size)
    return embeddings.reshape(*tokens.shape, table.shape[1]), tokens


def greedy_ids(
    id_generator: T5,
    encoded: Float[Array, "rows text d_model"],
    text_mask: Bool[Array, "rows places text"],
    *,
    id_length: int,
) -> Int[Array, "items length"]:
    """Decode `id_length` tokens per item greedily from its encoded text: EOS kept, padding after it.

    `text_mask` tells which positions of a row are the text of the item in each of its places; the items are all places,
    row by row.
    """
    config = id_generator.config
    rows, places, _ = text_mask.shape
    # Start token and tokens fill `id_length` decoder inputs: the last token is written, never read.
    cache = id_generator.start_decoding(
        encoded, text_mask, num_beams=places, group_size=1, max_length=max(1, id_length - 1)
    )

    def step(tokens, position, cache):
        hidden, written = id_generator.decode_step(tokens, position, cache)
        return id_generator.logits(hidden), written

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


def tokens_without_embedding(punctuation_ids: Iterable[int], vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """Return which rows of the vocabulary leave no trace in a soft ID: pure punctuation."""
    marks = np.zeros(vocab_size, bool)
    marks[sorted(punctuation_ids)] = True
    return marks


def without_gradient(model: T5) -> T5:
    """Return the same model with every parameter under stop_gradient."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))
