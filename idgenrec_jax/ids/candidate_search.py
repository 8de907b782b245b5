"""The two compiled programs that write candidates for IDs, and what one leaves on the device for the other."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from idgenrec_jax.decoding.diverse import PEEL_FROM_WIDTH, diverse_beam_search

# Tokens of a candidate beyond its minimum length, the start token and EOS among them.
_LENGTH_SPAN = 10


class EncodedTexts:
    """Encoder outputs on the device, by the number of the text, of at most `budget` bytes.

    Texts are kept as long as there is room. When there is none left, a text that is encoded again for a retry takes
    the place of texts that are not being retried.
    """

    def __init__(self, budget: int):
        """Nothing is kept yet."""
        self.kept: dict[int, Float[Array, "source d_model"]] = {}
        self._budget, self._used = budget, 0
        self._idle: list[int] = []

    def begin(self, needed: Iterable[int]) -> None:
        """Tells which texts the batches to come need: none of these gives way to another."""
        needed = set(needed)
        self._idle = [number for number in self.kept if number not in needed]

    def keep(self, number: int, output: Float[Array, "source d_model"]) -> None:
        """Keeps the output of a text if there is room, or if texts that are not needed can make room."""
        while self._idle and self._used + output.nbytes > self._budget:
            self._used -= self.kept.pop(self._idle.pop()).nbytes
        if self._used + output.nbytes <= self._budget:
            self.kept[number] = output
            self._used += output.nbytes


@functools.partial(jax.jit, static_argnames=("graphdef", "sharding"))
def encode_batch(
    graphdef: nnx.GraphDef,
    params: Any,
    tokens: Int[Array, "batch source"],
    lengths: Int[Array, " batch"],
    *,
    sharding: NamedSharding | None,
) -> tuple[Float[Array, "source d_model"], ...]:
    """The encoder's output for each row of a batch, whole on every device; compiled once per shape."""
    model = nnx.merge(graphdef, params)
    encoded = model.encode(tokens, jnp.arange(tokens.shape[1]) < lengths[:, None])
    # A row may be decoded in another batch, at another place of the mesh.
    if sharding is not None:
        encoded = jax.lax.with_sharding_constraint(encoded, NamedSharding(sharding.mesh, PartitionSpec()))
    # The barrier keeps XLA from working the last layer into each of the rows' copies.
    return tuple(jax.lax.optimization_barrier(encoded))


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "num_groups", "min_length", "length_penalty", "no_repeat_ngram_size", "sharding"),
)
def decode_batch(
    graphdef: nnx.GraphDef,
    params: Any,
    encoded: tuple[Float[Array, "source d_model"], ...],
    lengths: Int[Array, " batch"],
    penalties: Float[Array, " batch"],
    *,
    num_groups: int,
    min_length: int,
    length_penalty: float,
    no_repeat_ngram_size: int,
    sharding: NamedSharding | None,
) -> Int[Array, "batch groups target"]:
    """Diverse beam search with one beam a group over one batch; compiled once per shape and minimum length."""
    model = nnx.merge(graphdef, params)
    config = model.config
    outputs = jnp.stack(encoded)
    if sharding is not None:
        outputs = jax.lax.with_sharding_constraint(outputs, sharding)
    mask = jnp.arange(outputs.shape[1]) < lengths[:, None]
    max_length = min_length + _LENGTH_SPAN
    cache = model.start_decoding(outputs, mask, num_beams=num_groups, group_size=1, max_length=max_length - 2)

    def step(beam_tokens, position, cache):
        hidden, written = model.decode_step(beam_tokens, position, cache)
        return model.logits(hidden), written

    result = diverse_beam_search(
        step,
        cache,
        batch_size=len(encoded),
        num_beams=num_groups,
        num_groups=num_groups,
        diversity_penalty=penalties,
        min_length=min_length,
        max_length=max_length,
        vocab_size=config.vocab_size,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        start_token_id=config.decoder_start_token_id,
        length_penalty=length_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        peel_first=config.d_model >= PEEL_FROM_WIDTH,
    )
    return result.tokens
