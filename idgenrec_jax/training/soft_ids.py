"""Around the formula of `id_loss`: how IDs are written, which tokens carry an embedding, how IDs get into prompts."""

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
from idgenrec_jax.training.segments import same_segment, split_key

GREEDY_TOKENS = "greedy tokens"
"""What `checkpoint_name` calls them: they are kept where all else is computed again for the gradient."""


class SoftIds(NamedTuple):
    """The IDs of a batch's distinct items: soft embeddings, the greedy tokens, and which positions carry anything."""

    embeddings: Float[Array, "items length d_model"]
    mask: Bool[Array, "items length"]
    tokens: Int[Array, "items length"]


def write_ids(
    id_generator: T5,
    item_tokens: Int[Array, "rows text"],
    item_segments: Int[Array, "rows text"],
    item_places: Int[Array, "rows places"],
    *,
    id_length: int,
    dropout_key: DropoutKey | None,
) -> tuple[Float[Array, "rows places length d_model"], Int[Array, "rows places length"]]:
    """Return the hidden states behind every token of the items' IDs, and those tokens.

    The greedy tokens come from a loop without gradient; one teacher-forced pass over them gives the same hidden states
    with gradient. Without dropout the two share one encoder pass.
    """
    encoder_key, decoder_key = split_key(dropout_key)
    own_segment = same_segment(item_segments, item_segments)
    encoded = id_generator.encode(item_tokens, own_segment, dropout_key=encoder_key)
    frozen = without_gradient(id_generator)
    greedy_encoded = encoded if dropout_key is None else frozen.encode(item_tokens, own_segment)
    text_mask = same_segment(item_places, item_segments)
    tokens = greedy_ids(frozen, jax.lax.stop_gradient(greedy_encoded), text_mask, id_length=id_length)
    tokens = checkpoint_name(tokens, GREEDY_TOKENS).reshape(*item_places.shape, id_length)
    return hidden_behind(id_generator, encoded, text_mask, tokens, dropout_key=decoder_key), tokens


def hidden_behind(
    id_generator: T5,
    encoded: Float[Array, "rows text d_model"],
    text_mask: Bool[Array, "rows places text"],
    tokens: Int[Array, "rows places length"],
    *,
    dropout_key: DropoutKey | None = None,
) -> Float[Array, "rows places length d_model"]:
    """Return the hidden states from which given tokens of IDs are written, with gradient.

    `text_mask` is that of `greedy_ids`.
    """
    rows, _, id_length = tokens.shape
    # The IDs of a row's items stand one after the other, each with a start token and blind to the others:
    # [rows, places, length] -> [items, length] -> [rows, places * length].
    flat = tokens.reshape(-1, id_length)
    inputs = shift_right(flat, id_generator.config.decoder_start_token_id).reshape(rows, -1)
    place = jnp.arange(inputs.shape[1]) // id_length
    hidden = id_generator.decode(
        inputs,
        encoded,
        jnp.repeat(text_mask, id_length, axis=1),
        decoder_mask=jnp.broadcast_to(place[:, None] == place[None, :], (*inputs.shape, inputs.shape[1])),
        dropout_key=dropout_key,
    )
    # [rows, places * length, d_model] -> [rows, places, length, d_model]
    return hidden.reshape(*tokens.shape, -1)


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


def place_ids(
    recommender: T5,
    embeddings: Float[Array, "items length d_model"],
    mask: Bool[Array, "items length"],
    prompt_tokens: Int[Array, "rows source"],
    prompt_segments: Int[Array, "rows source"],
    slot_item: Int[Array, "rows source"],
    slot_position: Int[Array, "rows source"],
    prompt_items: Int[Array, "rows source"] | None = None,
) -> tuple[Float[Array, "rows source d_model"], Int[Array, "rows source"], Int[Array, "rows source"] | None]:
    """Embed the prompts with the ID embeddings in their slots, and return them with their segments and items.

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
    # [items, length, d_model] -> [rows, source, d_model]
    soft_rows = embeddings[reorder(item), reorder(slot_position)]
    token_rows = recommender.embed(reorder(prompt_tokens))
    placed = jnp.where(reorder(is_slot)[..., None], soft_rows.astype(token_rows.dtype), token_rows)
    items = None if prompt_items is None else reorder(prompt_items)
    return placed, reorder(jnp.where(kept, prompt_segments, 0)), items


def tokens_without_embedding(punctuation_ids: Iterable[int], vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """Return which rows of the vocabulary leave no trace in a soft ID: pure punctuation."""
    marks = np.zeros(vocab_size, bool)
    marks[sorted(punctuation_ids)] = True
    return marks


def without_gradient(model: T5) -> T5:
    """Return the same model with every parameter under stop_gradient."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))
