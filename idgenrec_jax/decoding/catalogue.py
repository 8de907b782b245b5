"""Every item's log-probability, exactly, by one decoder pass over the tree of prefixes (see `catalogue_plan`).

Memory holds one block of the tree and one number for every edge, however many items there are.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from idgenrec_jax.decoding.beam import BeamResult
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.decoding.top_k import blockwise_top_k
from idgenrec_jax.models.row_parts import in_parts
from idgenrec_jax.models.t5 import T5, KeysValues
from idgenrec_jax.sharding import constrain

CPU_LOGITS_BYTES, ACCELERATOR_LOGITS_BYTES = 16 * 2**20, 512 * 2**20
"""Logits over the whole vocabulary that are held at once."""


def score_items(
    model: T5,
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
    plan: CataloguePlan,
    length_penalty: float | Float[Array, ""] = 0.0,
) -> Float[Array, "batch items"]:
    """Return the log-probability of every item after each prompt, over (its tokens, EOS counted) ** length_penalty.

    Float32. Over the catalogue the probabilities of a user's items sum to one. Over the vocabulary they are those of
    the search: the trie forbids tokens without renormalising.
    """
    # Once for all blocks and users: a gather of rows that several devices may hold.
    table = constrain(model.output_table[plan.arrays.tokens_used], "tokens d_model").astype(model.config.dtype)
    score = partial(_score_part, model, plan, table)
    scores = in_parts(score, encoded, encoder_mask, positions=plan.arrays.tokens.shape[1])
    return scores / plan.arrays.lengths**length_penalty


def best_items(
    scores: Float[Array, "batch items"],
    seen: Int[Array, "batch seen"] | None,
    targets: Int[Array, " batch"] | None,
    num_results: int,
) -> tuple[BeamResult, Int[Array, " batch"] | None]:
    """Return each user's best items without those `seen` (-1 in free places), and the targets' places among all.

    Places count from 0; ties count against the target. That of a target which was seen is -1.
    """
    num_items = scores.shape[1]
    if seen is not None:
        rows = jnp.arange(scores.shape[0])[:, None]
        scores = scores.at[rows, jnp.where(seen < 0, num_items, seen)].set(-jnp.inf, mode="drop")
    best, items = blockwise_top_k(scores, min(num_results, num_items))
    missing = ((0, 0), (0, num_results - best.shape[1]))
    found = BeamResult(
        jnp.pad(jnp.where(best > -jnp.inf, items, -1), missing, constant_values=-1),
        jnp.pad(best, missing, constant_values=-jnp.inf),
    )
    if targets is None:
        return found, None
    of_targets = jnp.take_along_axis(scores, targets[:, None], axis=1)
    # [batch, items] -> [batch]
    places = (scores >= of_targets).sum(axis=1) - 1
    return found, jnp.where(of_targets[:, 0] > -jnp.inf, places, -1)


def _score_part(
    model: T5,
    plan: CataloguePlan,
    table: Float[Array, "tokens d_model"],
    encoded: Float[Array, "batch source d_model"],
    encoder_mask: Bool[Array, "batch source"],
) -> Float[Array, "batch items"]:
    """The sums of log-probabilities for users who are computed together."""
    arrays = plan.arrays
    keys_values = model.encoder_keys_values(encoded)

    def add_block(block: Int[Array, ""], log_probs: Float[Array, "batch edges"]) -> Float[Array, "batch edges"]:
        found = _block_log_probs(model, plan, table, keys_values, encoder_mask, block)
        # What stands behind the block's own edges is overwritten by the next.
        return lax.dynamic_update_slice(log_probs, found, (0, arrays.first_edges[block]))

    log_probs = jnp.zeros((encoded.shape[0], arrays.edge_outputs.shape[0]), jnp.float32)
    log_probs = constrain(log_probs, "batch edges", like=encoded)
    log_probs = lax.fori_loop(0, arrays.num_blocks, add_block, log_probs)

    def add_step(step: Int[Array, ""], scores: Float[Array, "batch items"]) -> Float[Array, "batch items"]:
        path = arrays.paths[step]
        # [batch, edges] -> [batch, items]
        return scores + jnp.where(path >= 0, log_probs[:, path], 0.0)

    scores = jnp.zeros((encoded.shape[0], plan.num_items), jnp.float32)
    return lax.fori_loop(0, arrays.paths.shape[0], add_step, constrain(scores, "batch items", like=encoded))


def _block_log_probs(
    model: T5,
    plan: CataloguePlan,
    table: Float[Array, "tokens d_model"],
    keys_values: list[KeysValues],
    encoder_mask: Bool[Array, "batch source"],
    block: Int[Array, ""],
) -> Float[Array, "batch widest"]:
    """The log-probability of every edge of one block, padded to the widest case."""
    arrays = plan.arrays
    length = arrays.tokens.shape[1]
    places = jnp.arange(length)
    # What is below a node stands side by side, right after it: [queries, keys].
    sees = (places[None, :] <= places[:, None]) & (places[:, None] < arrays.ends[block][None, :])
    positions = arrays.positions[block]
    tokens = jnp.where(positions == 0, model.config.decoder_start_token_id, arrays.tokens[block])
    # One row of tokens for all users.
    hidden = model.decode(
        tokens[None],
        keys_values,
        encoder_mask,
        decoder_mask=sees[None],
        positions=positions[None],
        wanted=arrays.outputs[block],
    )
    num_outputs = hidden.shape[1]
    log_sums = None if plan.over_catalogue else _vocabulary_log_sums(model, hidden)
    first_edge, first_token = arrays.first_edges[block], arrays.first_tokens[block]
    count = arrays.first_edges[block + 1] - first_edge

    def of_width(width: int) -> Float[Array, "batch widest"]:
        outputs = lax.dynamic_slice(arrays.edge_outputs, (first_edge,), (width,))
        children = lax.dynamic_slice(arrays.edge_tokens, (first_edge,), (width,))
        distinct = lax.dynamic_slice(arrays.block_tokens, (first_token,), (width,))
        # [batch, outputs, d_model] -> [batch, outputs, width]
        logits = jnp.einsum("bod,wd->bow", hidden, table[distinct], preferred_element_type=jnp.float32)
        if log_sums is None:
            rows = jnp.where(jnp.arange(width) < count, outputs, num_outputs)
            is_child = jnp.zeros((num_outputs, width), bool).at[rows, children].set(True, mode="drop")
            # [batch, outputs, width] -> [batch, outputs]
            normalisers = jax.nn.logsumexp(jnp.where(is_child, logits, -jnp.inf), axis=-1)
        else:
            normalisers = log_sums
        # [batch, outputs, width] -> [batch, width], an edge each
        found = logits[:, outputs, children] - normalisers[:, outputs]
        return jnp.pad(found, ((0, 0), (0, plan.widths[-1] - width)))

    cases = [partial(of_width, width) for width in plan.widths]
    return lax.switch((count > jnp.asarray(plan.widths)).sum(), cases)


def _vocabulary_log_sums(model: T5, hidden: Float[Array, "batch outputs d_model"]) -> Float[Array, "batch outputs"]:
    """The log of the sum of exponentials over the whole vocabulary, for as many positions at once as memory allows."""
    batch, count, d_model = hidden.shape
    most_bytes = CPU_LOGITS_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_LOGITS_BYTES
    most = most_bytes // (4 * model.config.vocab_size * batch)
    size = max(divisor for divisor in range(1, count + 1) if count % divisor == 0 and divisor <= max(1, most))
    # [batch, outputs, d_model] -> [chunks, batch, size, d_model]
    chunks = jnp.moveaxis(hidden.reshape(batch, -1, size, d_model), 1, 0)
    # [chunks, batch, size] -> [batch, outputs]
    log_sums = lax.map(lambda chunk: jax.nn.logsumexp(model.logits(chunk), axis=-1), chunks)
    return jnp.moveaxis(log_sums, 0, 1).reshape(batch, count)
