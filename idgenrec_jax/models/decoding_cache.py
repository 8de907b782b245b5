"""What the token-by-token decoder remembers: keys and values that stay where they were written.

A beam search that moves beams would copy their keys and values at every position. Here each beam remembers by number
which entries of the past are its own, and looks at all entries of its group through a mask. Keys are kept transposed,
as the product with the queries reads them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from idgenrec_jax.sharding import constrain

_SELF_KEYS = "batch groups heads d_kv positions"
_SELF_VALUES = "batch groups heads positions d_kv"


class Written(NamedTuple):
    """The keys and values that one decoder input of each beam adds to the cache, a tuple entry per layer."""

    keys: tuple[Float[Array, "batch groups heads d_kv group_size"], ...]
    values: tuple[Float[Array, "batch groups heads group_size d_kv"], ...]

    def widened(self, group_size: int) -> "Written":
        """Return the same for groups of `group_size` beams; those after the present ones have written zeros."""
        missing = group_size - self.values[0].shape[3]
        keep = ((0, 0), (0, 0), (0, 0))
        return Written(
            tuple(jnp.pad(keys, (*keep, (0, 0), (0, missing))) for keys in self.keys),
            tuple(jnp.pad(values, (*keep, (0, missing), (0, 0))) for values in self.values),
        )


class DecodingCache(NamedTuple):
    """The past of every beam, in the compute dtype; a tuple entry per layer.

    Beam i is number i % group_size of group i // group_size; only beams of one group may continue one another.
    `self_keys`, `self_values`: what number j of a group wrote at position p is in slot p * group_size + j; slots not
    written so far are zeros. `ancestors`: for each beam and position, the number whose entry of that position is its
    own. `cross_keys`, `cross_values`: one set per user, shared by that user's beams.
    """

    self_keys: tuple[Float[Array, "batch groups heads d_kv slots"], ...]
    self_values: tuple[Float[Array, "batch groups heads slots d_kv"], ...]
    ancestors: Int[Array, "batch groups group_size length"]
    cross_keys: tuple[Float[Array, "batch heads d_kv source"], ...]
    cross_values: tuple[Float[Array, "batch heads source d_kv"], ...]
    encoder_mask: Bool[Array, "batch source"] | Bool[Array, "batch beams source"]

    def extend(
        self, written: Written, position: int | Int[Array, ""], beams: Int[Array, "batch beams"] | None = None
    ) -> "DecodingCache":
        """Return the cache with `written` at `position`, in which beam k of each user continues beam `beams[user, k]`.

        None continues each beam by itself. `written` may be of the first few beams, when `beams` names no other; where
        it is of the first few groups, a group may continue one of another. The last position of all, which nothing
        reads, needs no room: it may overwrite the one before.
        """
        _, groups, group_size, length = self.ancestors.shape
        position = jnp.minimum(position, length - 1)
        ancestors, sources = self.ancestors, None
        if beams is None:
            numbers = jnp.broadcast_to(jnp.arange(group_size, dtype=ancestors.dtype), ancestors.shape[:3])
        else:
            beams = beams.reshape(ancestors.shape[:3])
            numbers = beams % group_size
            ancestors = jnp.take_along_axis(ancestors, numbers[..., None], axis=2)
            if written.keys[0].shape[1] < groups:
                sources = beams[:, :, 0] // group_size

        def add(caches: tuple[Array, ...], entries: tuple[Array, ...], dimensions: str) -> tuple[Array, ...]:
            axis = dimensions.split().index("positions")
            if sources is not None:
                entries = tuple(
                    jnp.take_along_axis(entry, sources[:, :, None, None, None], axis=1) for entry in entries
                )
            return tuple(
                constrain(
                    jax.lax.dynamic_update_slice_in_dim(cache, entry, position * group_size, axis=axis), dimensions
                )
                for cache, entry in zip(caches, entries, strict=True)
            )

        return self._replace(
            self_keys=add(self.self_keys, written.keys, _SELF_KEYS),
            self_values=add(self.self_values, written.values, _SELF_VALUES),
            ancestors=jax.lax.dynamic_update_slice_in_dim(ancestors, numbers[..., None], position, axis=3),
        )

    def first_groups(self, num_beams: int) -> tuple[int, int]:
        """Return how many groups the first `num_beams` beams are, and of how many beams; the last may not be cut."""
        group_size = min(num_beams, self.ancestors.shape[2])
        return num_beams // group_size, group_size

    def past(self, position: Int[Array, ""], num_beams: int) -> Bool[Array, "batch_groups 1 beams slots"]:
        """Return which slots are the past of each of the first `num_beams` beams, which stand at `position`."""
        groups, queries = self.first_groups(num_beams)
        group_size, length = self.ancestors.shape[2:]
        ancestors = self.ancestors[:, :groups, :queries].reshape(-1, queries, length, 1)
        is_own = ancestors == jnp.arange(group_size)
        is_written = jnp.arange(length) < position
        return (is_own & is_written[:, None]).reshape(-1, 1, queries, length * group_size)

    def self_pair(
        self, layer: int, num_beams: int
    ) -> tuple[Float[Array, "batch_groups heads slots d_kv"], Float[Array, "batch_groups heads slots d_kv"]]:
        """Return the keys and values of one layer's self-attention for the groups of the first `num_beams` beams."""
        groups, _ = self.first_groups(num_beams)
        keys, values = self.self_keys[layer][:, :groups], self.self_values[layer][:, :groups]
        return jnp.swapaxes(keys.reshape(-1, *keys.shape[2:]), 2, 3), values.reshape(-1, *values.shape[2:])

    def cross_pair(
        self, layer: int
    ) -> tuple[Float[Array, "batch heads source d_kv"], Float[Array, "batch heads source d_kv"]]:
        """Return the keys and values of one layer's cross-attention."""
        return jnp.swapaxes(self.cross_keys[layer], 2, 3), self.cross_values[layer]

    def written(
        self,
        pairs: Sequence[
            tuple[Float[Array, "batch_groups heads beams d_kv"], Float[Array, "batch_groups heads beams d_kv"]]
        ],
    ) -> Written:
        """Return what the decoder has made of one input per beam, each layer's keys and values, for `extend`."""
        batch = self.ancestors.shape[0]
        keys, values = (
            tuple(array.reshape(batch, -1, *array.shape[1:]) for array in arrays) for arrays in zip(*pairs, strict=True)
        )
        return Written(tuple(jnp.swapaxes(array, 3, 4) for array in keys), values)


def empty_cache(
    pairs: Sequence[tuple[Float[Array, "batch heads source d_kv"], Float[Array, "batch heads source d_kv"]]],
    encoder_mask: Bool[Array, "batch source"] | Bool[Array, "batch beams source"],
    *,
    num_beams: int,
    group_size: int,
    max_length: int,
) -> DecodingCache:
    """Return the cache before the first position, from each layer's keys and values of the encoder's states.

    It has room for `max_length` positions of `num_beams` beams per user, in groups of `group_size`.
    """
    keys = pairs[0][0]
    batch, heads, _, d_kv = keys.shape
    groups, slots = num_beams // group_size, max_length * group_size

    def zeros(shape: tuple[int, ...], dimensions: str) -> tuple[Array, ...]:
        return tuple(constrain(jnp.zeros(shape, keys.dtype), dimensions, like=keys) for _ in pairs)

    return DecodingCache(
        self_keys=zeros((batch, groups, heads, d_kv, slots), _SELF_KEYS),
        self_values=zeros((batch, groups, heads, slots, d_kv), _SELF_VALUES),
        ancestors=jnp.zeros((batch, groups, group_size, max_length), jnp.int32),
        # Without the barrier XLA's CPU compiler transposes them back, and anew at every position.
        cross_keys=jax.lax.optimization_barrier(tuple(jnp.swapaxes(keys, 2, 3) for keys, _ in pairs)),
        cross_values=tuple(values for _, values in pairs),
        encoder_mask=encoder_mask,
    )
