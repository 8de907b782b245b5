"""T5 in Flax NNX: the encoder, the decoder run in parallel, and the decoder run token by token over beams.

Two variants: v1.0 (relu, output table tied to the input table, final states scaled by d_model**-0.5) and v1.1 / Flan
(gated gelu, a separate output table, no scaling). The cached decoder keeps encoder keys and values once per user:
the beams of a user are the queries of one attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from idgenrec_jax.errors import InputError
from idgenrec_jax.models.decoding_cache import DecodingCache, Written, empty_cache
from idgenrec_jax.models.layers import (
    Attention,
    BatchPart,
    Dropout,
    DropoutKey,
    Embedding,
    FeedForward,
    RelativePositionBias,
    RMSNorm,
)
from idgenrec_jax.models.row_parts import in_parts
from idgenrec_jax.sharding import constrain

FEED_FORWARDS = ("relu", "gated-gelu")
COMPUTE_DTYPES = ("float32", "bfloat16")
REMATERIALISE = ("none", "layers")

KeysValues = tuple[Float[Array, "batch heads source d_kv"], Float[Array, "batch heads source d_kv"]]
"""Keys and values that an encoding offers to the cross-attention of one decoder block."""


@dataclass(frozen=True)
class T5Config:
    """The shape of a T5; names follow transformers where both have the field.

    `num_layers` counts encoder blocks, `num_decoder_layers` decoder blocks. `dropout_rate` is a fraction.
    `initializer_factor` multiplies every initial scale. `compute_dtype` is the dtype of activations; parameters are
    always float32. `rematerialise` is what a backward pass computes again instead of keeping it: "none", or the inside
    of all "layers", of which only the inputs are kept. Raises InputError on an impossible value.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward: str = "relu"
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    initializer_factor: float = 1.0
    compute_dtype: str = "float32"
    rematerialise: str = "none"

    def __post_init__(self):
        """Checks every field; the message of the InputError names the field, the value and what it may be."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("token_id"):
                if not 0 <= value < self.vocab_size:
                    raise InputError(f"T5 {field.name} is {value}; it must be within 0 .. {self.vocab_size - 1}")
            elif field.type is int and value < 1:
                raise InputError(f"T5 {field.name} is {value}; it must be at least 1")
        if self.feed_forward not in FEED_FORWARDS:
            raise InputError(f"T5 feed_forward is {self.feed_forward!r}; it must be one of {', '.join(FEED_FORWARDS)}")
        for name, choices in (("compute_dtype", COMPUTE_DTYPES), ("rematerialise", REMATERIALISE)):
            if getattr(self, name) not in choices:
                raise InputError(f"T5 {name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise InputError(f"T5 dropout_rate is {self.dropout_rate}; it must be at least 0 and less than 1")
        if not self.layer_norm_epsilon > 0.0:
            raise InputError(f"T5 layer_norm_epsilon is {self.layer_norm_epsilon}; it must be greater than 0")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or buckets % 2:
            raise InputError(f"T5 relative_attention_num_buckets is {buckets}; it must be even and at least 4")
        if distance <= buckets // 2:
            raise InputError(
                f"T5 relative_attention_max_distance is {distance}; for {buckets} buckets it must exceed {buckets // 2}"
            )

    @property
    def dtype(self) -> jnp.dtype:
        """`compute_dtype` as a dtype."""
        return jnp.dtype(self.compute_dtype)


def shift_right(targets: Int[Array, "batch target"], start_token: int) -> Int[Array, "batch target"]:
    """Decoder inputs for teacher forcing: `start_token`, then the targets without their last."""
    start = jnp.full((targets.shape[0], 1), start_token, targets.dtype)
    return jnp.concatenate([start, targets[:, :-1]], axis=1)


class EncoderBlock(nnx.Module):
    """Self-attention, then feed-forward; each normed before and added to the residual stream after."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        """One block of the shape in `config`."""
        factor = config.initializer_factor
        self.self_attention_norm = _norm(config)
        self.self_attention = Attention(config.d_model, config.d_kv, config.num_heads, factor=factor, rngs=rngs)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = FeedForward(
            config.d_model, config.d_ff, gated=config.feed_forward == "gated-gelu", factor=factor, rngs=rngs
        )

    def encode(
        self,
        hidden: Float[Array, "batch length d_model"],
        mask: Bool[Array, "#batch 1 #length length"],
        bias: Float[Array, "#batch heads length length"],
        dropout: Dropout,
    ) -> Float[Array, "batch length d_model"]:
        """The residual stream after the whole block."""
        return self.feed(self.attend_self(hidden, mask, bias, dropout), dropout)

    def attend_self(
        self,
        hidden: Float[Array, "batch length d_model"],
        mask: Bool[Array, "#batch 1 #queries length"],
        bias: Float[Array, "#batch heads queries length"],
        dropout: Dropout,
        wanted: Int[Array, " queries"] | None = None,
    ) -> Float[Array, "batch queries d_model"]:
        """The residual stream after self-attention over a whole sequence, or at its places `wanted` alone."""
        normed = self.self_attention_norm(hidden)
        keys, values = self.self_attention.keys_values(normed)
        if wanted is not None:
            # [batch, length, d_model] -> [batch, queries, d_model]
            hidden, normed = hidden[:, wanted], normed[:, wanted]
        return hidden + dropout(self.self_attention(normed, keys, values, mask=mask, bias=bias, dropout=dropout))

    def feed(
        self, hidden: Float[Array, "batch positions d_model"], dropout: Dropout
    ) -> Float[Array, "batch positions d_model"]:
        """The residual stream after the feed-forward network."""
        return hidden + dropout(self.feed_forward(self.feed_forward_norm(hidden), dropout))


class DecoderBlock(EncoderBlock):
    """An encoder block with cross-attention between its self-attention and its feed-forward network."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        """One block of the shape in `config`."""
        super().__init__(config, rngs=rngs)
        self.cross_attention_norm = _norm(config)
        self.cross_attention = Attention(
            config.d_model, config.d_kv, config.num_heads, factor=config.initializer_factor, rngs=rngs
        )

    def decode(
        self,
        hidden: Float[Array, "#batch target d_model"],
        encoded: Float[Array, "batch source d_model"] | KeysValues,
        mask: Bool[Array, "#batch 1 #queries target"],
        encoder_mask: Bool[Array, "batch 1 #queries source"],
        bias: Float[Array, "#batch heads queries target"],
        dropout: Dropout,
        wanted: Int[Array, " queries"] | None = None,
    ) -> Float[Array, "batch queries d_model"]:
        """The residual stream after the whole block, all positions (or all that are `wanted`) at once."""
        hidden = self.attend_self(hidden, mask, bias, dropout, wanted)
        keys, values = encoded if isinstance(encoded, tuple) else self.cross_attention.keys_values(encoded)
        return self.feed(self.attend_encoder(hidden, keys, values, encoder_mask, dropout), dropout)

    def attend_encoder(
        self,
        hidden: Float[Array, "#batch queries d_model"],
        keys: Float[Array, "batch heads source d_kv"],
        values: Float[Array, "batch heads source d_kv"],
        mask: Bool[Array, "batch 1 #queries source"],
        dropout: Dropout,
    ) -> Float[Array, "batch queries d_model"]:
        """The residual stream after cross-attention; the queries are target positions or one user's beams."""
        normed = self.cross_attention_norm(hidden)
        return hidden + dropout(self.cross_attention(normed, keys, values, mask=mask, bias=None, dropout=dropout))

    def attend_cache(
        self,
        hidden: Float[Array, "batch beams d_model"],
        keys: Float[Array, "batch_groups heads slots d_kv"],
        values: Float[Array, "batch_groups heads slots d_kv"],
        mask: Bool[Array, "batch_groups 1 group_size slots"],
        bias: Float[Array, "1 heads 1 slots"],
        own_bias: Float[Array, "1 heads 1 1"],
    ) -> tuple[
        Float[Array, "batch beams d_model"],
        Float[Array, "batch_groups heads group_size d_kv"],
        Float[Array, "batch_groups heads group_size d_kv"],
    ]:
        """Self-attention of one new token per beam over itself and its past; also its key and value.

        The beams of a group are the queries of one attention over what the whole group has written.
        """
        normed = self.self_attention_norm(hidden).reshape(keys.shape[0], -1, hidden.shape[-1])
        new_keys, new_values = self.self_attention.keys_values(normed)
        gathered = self.self_attention.attend_past(
            normed, keys, values, new_keys, new_values, mask=mask, bias=bias, own_bias=own_bias
        )
        return hidden + gathered.reshape(hidden.shape), new_keys, new_values


Block = TypeVar("Block", bound=EncoderBlock)


class Stack(nnx.Module, Generic[Block]):
    """The blocks of an encoder or a decoder, the position bias they share, and the norm after the last."""

    def __init__(self, config: T5Config, block: type[Block], count: int, *, bidirectional: bool, rngs: nnx.Rngs):
        """`count` blocks, unrolled; a bias that is not `bidirectional` looks backwards only."""
        self.position_bias = RelativePositionBias(
            config.num_heads,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            bidirectional=bidirectional,
            scale=config.initializer_factor * config.d_model**-0.5,
            rngs=rngs,
        )
        self.blocks = nnx.List([block(config, rngs=rngs) for _ in range(count)])
        self.final_norm = _norm(config)

    def bias(
        self, length: int, positions: Int[Array, "batch length"] | None
    ) -> Float[Array, "#batch heads length length"]:
        """The position bias of tokens that stand at these positions; None: one after the other."""
        return self.position_bias.square(length) if positions is None else self.position_bias.between(positions)


class T5(nnx.Module):
    """The encoder-decoder; see the module docstring for the variants and T5Config for the shape."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        """Random parameters from `rngs.params`, at the scales of the T5 paper times `config.initializer_factor`."""
        self.config = config
        factor = config.initializer_factor
        self.shared = Embedding(config.vocab_size, config.d_model, scale=factor, rngs=rngs)
        self.encoder = Stack(config, EncoderBlock, config.num_layers, bidirectional=True, rngs=rngs)
        self.decoder = Stack(config, DecoderBlock, config.num_decoder_layers, bidirectional=False, rngs=rngs)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Embedding(config.vocab_size, config.d_model, scale=factor, rngs=rngs)

    @property
    def output_table(self) -> Float[Array, "vocab d_model"]:
        """The float32 vectors whose products with the final states are the logits."""
        return constrain((self.shared if self.lm_head is None else self.lm_head).table[...], "rows width")

    def embed(self, tokens: Int[Array, "batch positions"]) -> Float[Array, "batch positions d_model"]:
        """The rows of the shared input table, in the compute dtype."""
        return constrain(self.shared(tokens).astype(self.config.dtype), "batch positions d_model")

    def encode(
        self,
        tokens: Int[Array, "batch source"] | None,
        mask: Bool[Array, "batch source"] | Bool[Array, "batch source source"],
        *,
        embeddings: Float[Array, "batch source d_model"] | None = None,
        positions: Int[Array, "batch source"] | None = None,
        dropout_key: DropoutKey | None = None,
        part: BatchPart | None = None,
    ) -> Float[Array, "batch source d_model"]:
        """The encoder's final states from tokens, or from `embeddings` that stand in for them.

        `mask` is True at real positions, which may be on either side; states elsewhere mean nothing. Where a row holds
        several sequences, it says for every pair of positions whether the first may look at the second. `positions` is
        where each token stands, if not at its own place in the row. `part` says which rows of a batch these are, where
        they are not all. Raises ValueError unless exactly one of `tokens` and `embeddings` is given.
        """
        if tokens is not None and embeddings is None:
            inputs = self.embed(tokens)
        elif embeddings is not None and tokens is None:
            inputs = embeddings.astype(self.config.dtype)
        else:
            raise ValueError("encode takes exactly one of tokens and embeddings")
        dropout = Dropout(self.config.dropout_rate, dropout_key, part)
        placed = () if positions is None else (positions,)
        if dropout.rate:
            return self._encode(inputs, mask, *placed, dropout=dropout)
        return in_parts(partial(self._encode, dropout=dropout), inputs, mask, *placed)

    def _encode(
        self,
        inputs: Float[Array, "batch source d_model"],
        mask: Bool[Array, "batch source"] | Bool[Array, "batch source source"],
        positions: Int[Array, "batch source"] | None = None,
        *,
        dropout: Dropout,
    ) -> Float[Array, "batch source d_model"]:
        """The encoder's final states of rows that are embedded already."""
        hidden = dropout(inputs)
        bias = self.encoder.bias(mask.shape[-1], positions)
        mask = _mask_of_heads(mask)
        for block in self.encoder.blocks:
            hidden = self._layer(block.encode, hidden, mask, bias, dropout)
        return dropout(self.encoder.final_norm(hidden))

    def decode(
        self,
        decoder_tokens: Int[Array, "#batch target"],
        encoded: Float[Array, "batch source d_model"] | list[KeysValues],
        encoder_mask: Bool[Array, "batch source"] | Bool[Array, "batch target source"],
        *,
        decoder_mask: Bool[Array, "#batch target"] | Bool[Array, "#batch target target"] | None = None,
        positions: Int[Array, "#batch target"] | None = None,
        wanted: Int[Array, " wanted"] | None = None,
        dropout_key: DropoutKey | None = None,
        part: BatchPart | None = None,
    ) -> Float[Array, "batch states d_model"]:
        """The decoder's final states at all positions at once; `logits` turns them into logits.

        Normed, and when the tables are tied already scaled by d_model**-0.5. `decoder_mask` is True at real
        positions and is needed only when padding comes before real tokens, or when a row holds several sequences:
        both masks are then given for pairs of positions, as in `encode`. No token looks at one after it in its row
        anyway. `positions` and `part` are those of `encode`. `encoded` may be what `encoder_keys_values` made of it.
        One row of tokens may serve all encodings. `wanted` are the places in a row whose states are returned: the last
        block computes keys and values alone for the others.
        """
        dropout = Dropout(self.config.dropout_rate, dropout_key, part)
        hidden = dropout(self.embed(decoder_tokens))
        of_blocks: Sequence[Array | KeysValues]
        if isinstance(encoded, list):
            of_blocks = encoded
        else:
            of_blocks = [encoded.astype(self.config.dtype)] * len(self.decoder.blocks)
        length = decoder_tokens.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if decoder_mask is not None:
            mask = mask & _mask_of_heads(decoder_mask)
        encoder_mask = _mask_of_heads(encoder_mask)
        bias = self.decoder.bias(length, positions)
        *blocks, last = zip(self.decoder.blocks, of_blocks, strict=True)
        for block, of_block in blocks:
            hidden = self._layer(block.decode, hidden, of_block, mask, encoder_mask, bias, dropout)
        if wanted is not None:
            mask, bias = mask[:, :, wanted], bias[:, :, wanted]
            encoder_mask = encoder_mask if encoder_mask.shape[2] == 1 else encoder_mask[:, :, wanted]
        block, of_block = last
        hidden = self._layer(block.decode, hidden, of_block, mask, encoder_mask, bias, dropout, wanted)
        return self._scale(dropout(self.decoder.final_norm(hidden)))

    def logits(
        self, hidden: Float[Array, "batch positions d_model"], table: Float[Array, "vocab d_model"] | None = None
    ) -> Float[Array, "batch positions vocab"]:
        """Float32 logits over the whole vocabulary from the final states of `decode` or `decode_step`.

        A `table` of some rows of `output_table` gives the logits of these.
        """
        dtype = self.config.dtype
        table = (self.output_table if table is None else table).astype(dtype)
        logits = jnp.einsum("...d,vd->...v", hidden.astype(dtype), table, preferred_element_type=jnp.float32)
        # Whole rows: a search takes the best of a row, for which XLA would gather it anyway.
        return constrain(logits, "batch positions vocab")

    def encoder_keys_values(self, encoded: Float[Array, "batch source d_model"]) -> list[KeysValues]:
        """What every block's cross-attention takes from an encoding: computed once, however often it is decoded."""
        encoded = encoded.astype(self.config.dtype)
        return [block.cross_attention.keys_values(encoded) for block in self.decoder.blocks]

    def start_decoding(
        self,
        encoded: Float[Array, "batch source d_model"],
        encoder_mask: Bool[Array, "batch source"] | Bool[Array, "batch beams source"],
        *,
        num_beams: int,
        max_length: int,
        group_size: int | None = None,
    ) -> DecodingCache:
        """An empty cache for `max_length` decoder inputs on `num_beams` beams per user.

        The start token counts; a last input, which nothing looks back at, does not. Beams only ever continue others of
        their group of `group_size` (all of them by default). Where a row holds several texts, `encoder_mask` says for
        each beam which positions are its own.
        """

        pairs = in_parts(self.encoder_keys_values, encoded)
        return empty_cache(
            pairs, encoder_mask, num_beams=num_beams, group_size=group_size or num_beams, max_length=max_length
        )

    def decode_step(
        self, tokens: Int[Array, "batch beams"], position: Int[Array, ""], cache: DecodingCache
    ) -> tuple[Float[Array, "batch beams d_model"], Written]:
        """The final states after one more decoder input per beam, at `position` (0 for the start token).

        Equals column `position` of `decode` on all inputs so far, without dropout. The cache must hold the positions
        before, and have room for this one, which `DecodingCache.extend` puts there. Fewer beams than the cache has are
        its first ones.
        """
        hidden = self.embed(tokens)
        num_beams = tokens.shape[1]
        group_size, length = cache.ancestors.shape[2:]
        bias = self.decoder.position_bias.row(position, length + 1)
        own_bias = jax.lax.dynamic_slice_in_dim(bias, position, 1, axis=3)
        bias = jnp.repeat(bias[..., :-1], group_size, axis=3)
        past = cache.past(position, num_beams)
        encoder_mask = _mask_of_heads(cache.encoder_mask)
        pairs = []
        for layer, block in enumerate(self.decoder.blocks):
            hidden, keys, values = block.attend_cache(hidden, *cache.self_pair(layer, num_beams), past, bias, own_bias)
            pairs.append((keys, values))
            hidden = block.attend_encoder(hidden, *cache.cross_pair(layer), encoder_mask, Dropout(0.0, None))
            hidden = block.feed(hidden, Dropout(0.0, None))
        return self._scale(self.decoder.final_norm(hidden)), cache.written(pairs)

    def _layer(
        self,
        layer: Callable[..., Float[Array, "batch positions d_model"]],
        hidden: Float[Array, "#batch length d_model"],
        *rest: Array | KeysValues | Dropout | None,
    ) -> Float[Array, "batch positions d_model"]:
        """`layer(hidden, *rest)`, computed again in the backward pass where the configuration wants it."""
        if self.config.rematerialise == "none":
            return layer(hidden, *rest)
        return jax.checkpoint(lambda hidden: layer(hidden, *rest))(hidden)

    def _scale(self, hidden: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        """v1.0 scales the states that meet the shared table, which was initialised to serve as an input table."""
        return hidden * self.config.d_model**-0.5 if self.config.tie_word_embeddings else hidden


def _mask_of_heads(
    mask: Bool[Array, "batch keys"] | Bool[Array, "batch queries keys"],
) -> Bool[Array, "batch 1 #queries keys"]:
    """A mask of positions, or of pairs of them, for all heads."""
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]


def _norm(config: T5Config) -> RMSNorm:
    """A norm over d_model."""
    return RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, initial_scale=config.initializer_factor)
