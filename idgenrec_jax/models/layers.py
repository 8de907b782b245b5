"""The layers T5 is built from: dropout, linear maps, RMS norm, relative position bias, attention, feed-forward.

All parameters are float32; every layer computes in the dtype of its input, with reductions that lose precision
(norm statistics, attention scores and their softmax) in float32. Layer shapes and initial scales follow
"Exploring the Limits of Transfer Learning" (T5, Raffel et al. 2020) as transformers implements it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt, UInt32

from idgenrec_jax.sharding import constrain

MASKED_SCORE = -1e9
"""Score of a forbidden position: finite, so that a row in which nothing is allowed stays free of NaN."""

DropoutKey = Key[Array, ""] | UInt[Array, "..."]
"""A typed jax.random.key or a raw PRNGKey."""


def mix_bits(words: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32-bit words in which every input bit flips every output bit with probability near one half.

    Two rounds of multiply and shift; the constants are from a public-domain search for low-bias hashes.
    """
    words = (words ^ (words >> 16)) * jnp.uint32(0x21F0AAAD)
    words = (words ^ (words >> 15)) * jnp.uint32(0x735A2D97)
    return words ^ (words >> 15)


class BatchPart(NamedTuple):
    """The rows number, number + num_parts, number + 2 * num_parts, .. of a batch that is computed in parts."""

    number: Int[Array, ""]
    num_parts: int


def position_words(
    first: UInt32[Array, ""], second: UInt32[Array, ""], shape: tuple[int, ...], part: BatchPart | None = None
) -> UInt32[Array, "..."]:
    """A random word for each position of `shape`, a pure function of the two seed words and the position.

    The first axis is that of a batch's rows; those of a `part` have the words that they have in the whole.

    A counter-based generator of a dozen elementwise operations: it fuses into what uses it, compiles in a tenth of
    the time of a Threefry mask, and gives each element the same word however the array is sharded.
    """
    counter = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        counter = counter * jnp.uint32(size)
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        if axis == 0 and part is not None:
            place = place * jnp.uint32(part.num_parts) + part.number.astype(jnp.uint32)
        counter = counter + place
    return mix_bits(mix_bits(counter * jnp.uint32(0x9E3779B9) + first) ^ second)


class Dropout:
    """One forward pass's source of dropout masks: a rate, a key, and a counter of the masks drawn so far.

    The n-th mask of a pass follows from (key, n), so that a pass is a pure function of its key. Without a key every
    call returns its input unchanged.
    """

    def __init__(self, rate: float, key: DropoutKey | None, part: BatchPart | None = None):
        """Masks at `rate` (a fraction, 0 <= rate < 1) from `key`; None makes the pass deterministic.

        The masks of a `part` of a batch are those that its rows have in the whole.
        """
        self.rate = 0.0 if key is None else rate
        self.part = part
        self.count = 0
        if key is not None and rate:
            words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
            self.first, self.second = words.reshape(-1)[0], words.reshape(-1)[-1]

    def __call__(self, inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate)."""
        if self.rate == 0.0:
            return inputs
        self.count += 1
        first = mix_bits(self.first + jnp.uint32(self.count))
        keep = position_words(first, self.second, inputs.shape, self.part) >= jnp.uint32(round(self.rate * 2**32))
        scale = 1.0 / (1.0 - self.rate)
        return jnp.where(keep, inputs * jnp.asarray(scale, inputs.dtype), jnp.zeros((), inputs.dtype))


class Linear(nnx.Module):
    """A linear map without bias; `kernel` is Float["inputs outputs"]."""

    def __init__(self, num_inputs: int, num_outputs: int, *, scale: float, rngs: nnx.Rngs):
        """Kernel drawn from a normal distribution of standard deviation `scale`."""
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (num_inputs, num_outputs), jnp.float32))

    def __call__(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """`inputs @ kernel` in the dtype of `inputs`."""
        return _matrix_product(inputs, self.kernel[...].astype(inputs.dtype))


@jax.custom_vjp
def _matrix_product(
    inputs: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """`inputs @ kernel`; its gradient writes the kernel's as inputs.T @ gradient.

    JAX's own rule is (gradient.T @ inputs).T. XLA's CPU compiler then transposes the wider matrix, and computes what
    fuses into it (dropout masks, relu) once more in the transposed order: a training step took 8 to 15% longer.
    """
    return inputs @ kernel


def _matrix_product_forward(inputs, kernel):
    return _matrix_product(inputs, kernel), (inputs, kernel)


def _matrix_product_backward(residuals, gradient):
    inputs, kernel = residuals
    rows, gradient_rows = inputs.reshape(-1, inputs.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel.T, rows.T @ gradient_rows


_matrix_product.defvjp(_matrix_product_forward, _matrix_product_backward)


@jax.custom_vjp
def _add_shared(
    scores: Float[Array, "batch heads queries keys"], bias: Float[Array, "1 heads queries keys"]
) -> Float[Array, "batch heads queries keys"]:
    """`scores + bias`; the bias' gradient is summed over the batch by a product with ones.

    XLA's CPU compiler sums over a leading axis in one thread, element by element: 17 ms of a training step of 340.
    """
    return scores + bias


def _add_shared_forward(scores, bias):
    return scores + bias, None


def _add_shared_backward(_, gradient):
    ones = jnp.ones((1, gradient.shape[0]), gradient.dtype)
    # The highest precision: a sum must not lose digits where products of float32 are rounded first (TF32).
    total = jnp.matmul(ones, gradient.reshape(gradient.shape[0], -1), precision="highest")
    return gradient, total.reshape(1, *gradient.shape[1:])


_add_shared.defvjp(_add_shared_forward, _add_shared_backward)


class Embedding(nnx.Module):
    """A table of vectors, Float["rows width"]."""

    def __init__(self, num_rows: int, width: int, *, scale: float, rngs: nnx.Rngs):
        """Table drawn from a normal distribution of standard deviation `scale`."""
        self.table = nnx.Param(scale * jax.random.normal(rngs.params(), (num_rows, width), jnp.float32))

    def __call__(self, rows: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """The float32 vectors of `rows`; a row past the end of the table gives NaN rather than a wrong vector."""
        # Where vectors are split, each device needs whole ones, of its own part of the rows.
        return jnp.take(constrain(self.table[...], "rows width"), rows, axis=0)


class RMSNorm(nnx.Module):
    """Scales by the root mean square, without centring and without bias (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, *, epsilon: float, initial_scale: float):
        """Norm over a last axis of `width` elements; `epsilon` is added to the mean square."""
        self.scale = nnx.Param(jnp.full((width,), initial_scale, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, inputs: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """The normed inputs: computed in float32, returned in the dtype of `inputs`."""
        wide = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(inputs.dtype)


def distance_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, " length"]:
    """The bucket of every distance 0 .. length - 1 in one direction (T5, section 2.1).

    Half of the buckets hold one distance each, the others grow logarithmically up to `max_distance`, and everything
    further shares the last one. Float32 arithmetic in transformers' order, because bucket borders fall on exact
    powers, where another rounding would move a distance to its neighbour.
    """
    distances = np.arange(length, dtype=np.int32)
    num_exact = num_buckets // 2
    ratio = np.maximum(distances, num_exact).astype(np.float32) / np.float32(num_exact)
    fraction = np.log(ratio) / np.float32(math.log(max_distance / num_exact))
    coarse = num_exact + (fraction * np.float32(num_buckets - num_exact)).astype(np.int32)
    return np.where(distances < num_exact, distances, np.minimum(coarse, num_buckets - 1)).astype(np.int32)


class RelativePositionBias(nnx.Module):
    """A learned score per head for how far, and in which direction, a key lies from its query."""

    def __init__(
        self, num_heads: int, *, num_buckets: int, max_distance: int, bidirectional: bool, scale: float, rngs: nnx.Rngs
    ):
        """`table` is Float["buckets heads"]; `bidirectional` gives half of the buckets to keys after the query."""
        self.table = nnx.Param(scale * jax.random.normal(rngs.params(), (num_buckets, num_heads), jnp.float32))
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def square(self, length: int) -> Float[Array, "1 heads length length"]:
        """The bias of every query (second last axis) against every key (last axis) of one sequence.

        One lookup per offset, then every row is the previous one moved by one place. The move is a broadcast and a
        reshape: its gradient is a plain sum, where a lookup per pair would scatter length**2 values into few rows.
        """
        later, earlier = self._buckets(length)
        # Offset key - query at index offset mod 2 * length; index `length` is an offset that no pair has.
        buckets = np.concatenate([later, earlier[:1], earlier[:0:-1]])
        by_offset = self.table[...][buckets].T
        rows = jnp.broadcast_to(by_offset[:, None, :], (by_offset.shape[0], length, 2 * length))
        flat = rows.reshape(by_offset.shape[0], -1)[:, : length * (2 * length - 1)]
        return flat.reshape(1, -1, length, 2 * length - 1)[..., :length]

    def between(self, positions: Int[Array, "batch length"]) -> Float[Array, "batch heads length length"]:
        """The bias of every query against every key, where each token of a row says at which position it stands.

        Tokens of a row may stand at one position: those of several continuations of one text. Positions are below the
        number of tokens in a row.
        """
        length = positions.shape[1]
        later, earlier = self._buckets(length)
        # Bucket of the offset key - query, at index offset + length - 1.
        buckets = jnp.asarray(np.concatenate([earlier[:0:-1], later]))
        offsets = positions[:, None, :] - positions[:, :, None] + length - 1
        # [batch, queries, keys] -> [batch, queries, keys, heads] -> [batch, heads, queries, keys]
        return jnp.moveaxis(self.table[...][buckets[offsets]], 3, 1)

    def row(self, position: Int[Array, ""], length: int) -> Float[Array, "1 heads 1 length"]:
        """The bias of the query at `position` against keys 0 .. length - 1, of which none after it is meant."""
        earlier = jnp.asarray(self._buckets(length)[1])
        distances = jnp.maximum(position - jnp.arange(length), 0)
        return self.table[...][earlier[distances]].T[None, :, None, :]

    def _buckets(self, length: int) -> tuple[Int[np.ndarray, " length"], Int[np.ndarray, " length"]]:
        """Buckets by distance for keys after the query and for keys before it; distance zero is the same in both."""
        if not self.bidirectional:
            # A key after its query is masked in the decoder; it takes the bucket of distance zero.
            earlier = distance_buckets(length, self.num_buckets, self.max_distance)
            return np.zeros_like(earlier), earlier
        half = self.num_buckets // 2
        earlier = distance_buckets(length, half, self.max_distance)
        return np.where(np.arange(length) > 0, earlier + half, earlier).astype(np.int32), earlier


class Attention(nnx.Module):
    """Multi-head attention without 1/sqrt(d_kv): T5 puts that factor into the initial query kernel."""

    def __init__(self, d_model: int, d_kv: int, num_heads: int, *, factor: float, rngs: nnx.Rngs):
        """Kernels between `d_model` and `num_heads` heads of `d_kv` each; `factor` multiplies the initial scales."""
        width = num_heads * d_kv
        self.num_heads = num_heads
        self.query = Linear(d_model, width, scale=factor * (d_model * d_kv) ** -0.5, rngs=rngs)
        self.key = Linear(d_model, width, scale=factor * d_model**-0.5, rngs=rngs)
        self.value = Linear(d_model, width, scale=factor * d_model**-0.5, rngs=rngs)
        self.output = Linear(width, d_model, scale=factor * width**-0.5, rngs=rngs)

    def keys_values(
        self, inputs: Float[Array, "batch keys d_model"]
    ) -> tuple[Float[Array, "batch heads keys d_kv"], Float[Array, "batch heads keys d_kv"]]:
        """The keys and values that `inputs` offer."""
        return self._split_heads(self.key(inputs)), self._split_heads(self.value(inputs))

    def __call__(
        self,
        inputs: Float[Array, "#batch queries d_model"],
        keys: Float[Array, "batch heads keys d_kv"],
        values: Float[Array, "batch heads keys d_kv"],
        *,
        mask: Bool[Array, "#batch #heads #queries keys"],
        bias: Float[Array, "#batch heads #queries keys"] | None,
        dropout: Dropout,
    ) -> Float[Array, "batch queries d_model"]:
        """What each query gathers from the allowed keys; `mask` is True where a query may look.

        The queries may be positions of one sequence or beams of one user: keys and values are never repeated. One row
        of queries may serve all keys.
        """
        queries = self._split_heads(self.query(inputs))
        scores = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        if bias is not None:
            scores = _add_shared(scores, bias) if bias.shape[0] == 1 else scores + bias
        weights = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE), axis=-1).astype(inputs.dtype)
        gathered = jnp.einsum("bhqk,bhkd->bhqd", dropout(weights), values)
        return self._join_heads(gathered)

    def attend_past(
        self,
        inputs: Float[Array, "batch queries d_model"],
        past_keys: Float[Array, "batch heads past d_kv"],
        past_values: Float[Array, "batch heads past d_kv"],
        own_keys: Float[Array, "batch heads queries d_kv"],
        own_values: Float[Array, "batch heads queries d_kv"],
        *,
        mask: Bool[Array, "batch 1 queries past"],
        bias: Float[Array, "1 heads 1 past"],
        own_bias: Float[Array, "1 heads 1 1"],
    ) -> Float[Array, "batch queries d_model"]:
        """What each query gathers from itself and from the allowed keys before it, without dropout.

        The past is only read: it need not be copied to put the queries' own keys beside it.
        """
        queries = self._split_heads(self.query(inputs))
        past = jnp.einsum("bhqd,bhkd->bhqk", queries, past_keys, preferred_element_type=jnp.float32) + bias
        own = jnp.einsum("bhqd,bhqd->bhq", queries, own_keys, preferred_element_type=jnp.float32)[..., None] + own_bias
        past = jnp.where(mask, past, -jnp.inf)
        top = jnp.maximum(past.max(-1, keepdims=True), own)
        past, own = jnp.exp(past - top), jnp.exp(own - top)
        total = past.sum(-1, keepdims=True) + own
        dtype = inputs.dtype
        gathered = jnp.einsum("bhqk,bhkd->bhqd", (past / total).astype(dtype), past_values)
        return self._join_heads(gathered + (own / total).astype(dtype) * own_values)

    def _split_heads(
        self, projected: Float[Array, "batch positions width"]
    ) -> Float[Array, "batch heads positions d_kv"]:
        """[batch, positions, heads * d_kv] as [batch, heads, positions, d_kv].

        Heads before positions: XLA's CPU products over two leading batch axes are three times faster.
        """
        heads = jnp.swapaxes(projected.reshape(*projected.shape[:-1], self.num_heads, -1), 1, 2)
        return constrain(heads, "batch heads positions d_kv")

    def _join_heads(self, gathered: Float[Array, "batch heads queries d_kv"]) -> Float[Array, "batch queries d_model"]:
        """The output map of what all heads have gathered."""
        joined = jnp.swapaxes(gathered, 1, 2).reshape(gathered.shape[0], gathered.shape[2], -1)
        return constrain(self.output(joined), "batch queries d_model")


class FeedForward(nnx.Module):
    """The position-wise network: relu (T5 v1.0), or a gelu gate times a linear map (T5 v1.1, Shazeer 2020)."""

    def __init__(self, d_model: int, d_ff: int, *, gated: bool, factor: float, rngs: nnx.Rngs):
        """`d_model` to `d_ff` and back; when `gated`, `wi_0` is the gate and `wi_1` the linear map it multiplies."""
        self.gated = gated
        scale = factor * d_model**-0.5
        if gated:
            self.wi_0 = Linear(d_model, d_ff, scale=scale, rngs=rngs)
            self.wi_1 = Linear(d_model, d_ff, scale=scale, rngs=rngs)
        else:
            self.wi = Linear(d_model, d_ff, scale=scale, rngs=rngs)
        self.wo = Linear(d_ff, d_model, scale=factor * d_ff**-0.5, rngs=rngs)

    def __call__(
        self, inputs: Float[Array, "batch positions d_model"], dropout: Dropout
    ) -> Float[Array, "batch positions d_model"]:
        """The network's output, in the dtype of `inputs`."""
        if self.gated:
            hidden = jax.nn.gelu(self.wi_0(inputs), approximate=True) * self.wi_1(inputs)
        else:
            hidden = jax.nn.relu(self.wi(inputs))
        hidden = constrain(hidden, "batch positions d_ff")
        return constrain(self.wo(dropout(hidden)), "batch positions d_model")
