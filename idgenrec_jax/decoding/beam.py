"""Beam search over the catalogue, and greedy search, inside lax.while_loop.

The constrained search gives the items, order and scores of transformers' `generate` (5.23, `_beam_search`) with
`num_beams`, `prefix_allowed_tokens_fn`, `do_sample=False` and `early_stopping=False`, except that only items are
ever returned. A beam is a state of the trie and a score. No token sequence is kept: a finished beam's state is its
item.

A trie over the catalogue makes the same search one over choices: the log-probability of a continuation is over the
children of the beam's node, 0 where there is one, and a beam past its last choice is an item.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from idgenrec_jax.decoding.top_k import blockwise_top_k
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.errors import InputError

# (tokens [batch, beams], position, cache) -> (logits [batch, beams, columns], written). The columns are those of the
# trie: the vocabulary, or the tokens of its choices. What the beams have written goes into the cache by its method
# `extend(written, position, beams)`, where `beams` [batch, beams] says which beam each continues (None: itself). A call
# may have fewer beams than the cache, its first ones; `written.widened(beams)` is then of the shape of a call with all.
Step = Callable[[Int[Array, "batch beams"], Int[Array, ""], Any], tuple[Float[Array, "batch beams columns"], Any]]


MODEL_WIDTH_OF_NARROW_STEPS = 128
"""d_model from which a search gains by decoding steps for fewer beams, as `narrow_steps` has them.

Each is a copy of the decoding step that is to be compiled, by which smaller models lose more.
"""


def narrow_steps(num_beams: int) -> tuple[int, ...]:
    """Return the numbers of beams worth a decoding step of their own, ascending.

    One beam runs at the first token. Few run at the ends of long IDs. Somewhat more run one position before.
    """
    return tuple(sorted({1, max(1, num_beams // 4), max(1, 3 * num_beams // 5)} - {num_beams}))


class BeamResult(NamedTuple):
    """The best items of each user, best first: `items` int32 [batch, results], `scores` float32 [batch, results].

    Where there are fewer items than results, the rest are item -1 with score -inf. A score is the sum of the
    log-probabilities of the item's tokens, EOS included, over (their number) ** length_penalty; over the catalogue, of
    its choices.
    """

    items: Int[Array, "batch results"]
    scores: Float[Array, "batch results"]


class Candidates(NamedTuple):
    """The best continuations of a user's beams, best first; `beam` is the one continued, -inf marks no continuation."""

    scores: Float[Array, "batch candidates"]
    beams: Int[Array, "batch candidates"]
    tokens: Int[Array, "batch candidates"]
    states: Int[Array, "batch candidates"]


class _Search(NamedTuple):
    """What the loop carries: the running beams, the finished items, and who may still improve."""

    position: Int[Array, ""]
    tokens: Int[Array, "batch running"]
    states: Int[Array, "batch running"]
    scores: Float[Array, "batch running"]
    items: Int[Array, "batch beams"]
    item_scores: Float[Array, "batch beams"]
    can_improve: Bool[Array, " batch"]
    cache: Any


def available_results(num_items: int, num_results: int) -> int:
    """Return how many of `num_results` the catalogue can give; log a warning when that is fewer.

    It is called once, outside jit. The search itself fills the missing places with item -1.
    """
    if num_results > num_items:
        logging.warning(
            "%d results were asked for, but the catalogue has %d items: every item is returned", num_results, num_items
        )
    return min(num_results, num_items)


def constrained_beam_search(
    step: Step,
    cache: Any,
    trie: Trie,
    *,
    batch_size: int,
    num_beams: int,
    num_results: int,
    start_token_id: int,
    length_penalty: float | Float[Array, ""] = 0.0,
    max_length: int | None = None,
    narrow: Sequence[int] = (),
    seen: Int[Array, "batch seen"] | None = None,
) -> BeamResult:
    """Return the `num_results` items that the model finds most likely, none twice and none of `seen` (-1: no item).

    Log-probabilities are over the full vocabulary. The trie then forbids tokens, without renormalising. With a trie
    over the catalogue they are over the children of a node; `length_penalty` must be 0 then.

    `cache` must have room for `trie.depth - 1` positions (or `max_length - 2`). `max_length` counts the start token, as
    in transformers; items that do not fit are never returned. By default all fit. `narrow` holds numbers of beams,
    ascending. A position is decoded with the smallest of them that no user's running beams exceed, otherwise with all.

    Raises:
        InputError: more results than beams are asked for, or `max_length` leaves no room for a token.
    """
    if not 1 <= num_results <= num_beams:
        raise InputError(
            f"num_results: found {num_results} with num_beams {num_beams}, expected 1 to num_beams; raise num_beams"
        )
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length: found {max_length}, expected at least 2, the start token and one more")
    num_steps = trie.counts[2] if max_length is None else jnp.minimum(trie.counts[2], max_length - 1)
    shape = (batch_size, num_beams)
    no_score = jnp.full(shape, -jnp.inf, jnp.float32)
    search = _Search(
        position=jnp.int32(0),
        # Beams start alike: only the first may be continued, or each prefix would be found once per beam.
        tokens=jnp.full(shape, start_token_id, jnp.int32),
        states=jnp.zeros(shape, jnp.int32),
        scores=no_score.at[:, 0].set(0.0),
        items=jnp.full(shape, -1, jnp.int32),
        item_scores=no_score,
        can_improve=jnp.ones(batch_size, bool),
        cache=cache,
    )

    def is_unfinished(search: _Search) -> Bool[Array, ""]:
        return (search.position < num_steps) & search.can_improve.any()

    def continue_beams(search: _Search, count: int) -> tuple[Candidates, Any]:
        # [batch, beams] -> [batch, count]
        tokens, states, scores = (array[:, :count] for array in (search.tokens, search.states, search.scores))
        # [batch, count] -> [batch, count, columns]
        logits, written = step(tokens, search.position, search.cache)
        if count < num_beams:
            written = written.widened(num_beams)
        # [batch, count, columns] -> [batch, 2 * beams]
        return best_candidates(trie, logits, states, scores, 2 * num_beams, seen=seen), written

    def advance(search: _Search) -> _Search:
        # Beams are sorted by score: those that do not run are the last. [batch, beams] -> [batch] -> []
        running = (search.scores > -jnp.inf).sum(axis=1).max()
        branches = [lambda count=count: continue_beams(search, count) for count in (*narrow, num_beams)]
        candidates, written = lax.switch((running > jnp.asarray(narrow, jnp.int32)).sum(), branches)
        return _update(search, candidates, written, trie.counts[0], num_steps, length_penalty)

    search = lax.while_loop(is_unfinished, advance, search)
    # [batch, beams] -> [batch, results]
    return BeamResult(search.items[:, :num_results], search.item_scores[:, :num_results])


def best_candidates(
    trie: Trie,
    logits: Float[Array, "batch beams columns"],
    states: Int[Array, "batch beams"],
    scores: Float[Array, "batch beams"],
    num_candidates: int,
    *,
    seen: Int[Array, "batch seen"] | None = None,
) -> Candidates:
    """Return the `num_candidates` best continuations that the trie allows; ties go to the first beam, lowest token.

    `states` and `scores` are those of the beams. A beam with score -inf has no continuation. None ends in an item of
    `seen`.
    """
    logits = logits.astype(jnp.float32)
    # As many items as were seen may have to be left out.
    count = num_candidates if seen is None else num_candidates + seen.shape[1]
    best_edges = _best_by_mask if trie.layout == "dense" else _best_by_children
    best, beams, edges = best_edges(trie, logits, states, scores, count)
    found = Candidates(best, beams, trie.edge_tokens[edges], trie.edge_states[edges])
    if seen is None:
        return found
    items = found.states - trie.counts[0]
    # [batch, count, 1] and [batch, 1, seen] -> [batch, count]
    is_seen = ((items[..., None] == seen[:, None]) & (items >= 0)[..., None]).any(-1)
    # [batch, count] -> [batch, candidates]
    best, kept = blockwise_top_k(jnp.where(is_seen, -jnp.inf, found.scores), num_candidates)
    return Candidates(best, *(_take(array, kept) for array in found[1:]))


Best = tuple[Float[Array, "batch count"], Int[Array, "batch count"], Int[Array, "batch count"]]
"""Scores, beams and edges of the best continuations; -inf marks none."""


def _best_by_mask(
    trie: Trie,
    logits: Float[Array, "batch beams columns"],
    states: Int[Array, "batch beams"],
    scores: Float[Array, "batch beams"],
    count: int,
) -> Best:
    """Return the `count` best among all columns of all beams, by the mask tensor."""
    # [batch, beams] -> [batch, beams, columns]
    allowed = trie.allowed_columns(states)
    log_sums = _log_sums(jnp.where(allowed, logits, -jnp.inf) if trie.over_catalogue else logits)
    # [batch, beams, columns] + [batch, beams, 1]
    totals = (logits - log_sums) + scores[..., None]
    # [batch, beams, columns] -> [batch, count]; an index is beam * columns + column.
    best, indices = _padded_top_k(jnp.where(allowed, totals, -jnp.inf), count)
    beams, columns = indices // trie.num_columns, indices % trie.num_columns
    return best, beams, jnp.maximum(trie.edges(_take(states, beams), columns), 0)


def _best_by_children(
    trie: Trie,
    logits: Float[Array, "batch beams columns"],
    states: Int[Array, "batch beams"],
    scores: Float[Array, "batch beams"],
    count: int,
) -> Best:
    """Return the `count` best among the children of all beams, by gathering these."""
    # [batch, beams, vocab] -> [batch, beams, 1]
    log_sums = None if trie.over_catalogue else _log_sums(logits)

    def gather(width: int) -> Best:
        # [batch, beams] -> [batch, beams, width]
        edges, is_child = trie.child_edges(states, width)
        # [batch, beams, columns] -> [batch, beams, width]
        chosen = jnp.take_along_axis(logits, trie.columns[edges], axis=-1)
        sums = _log_sums(jnp.where(is_child, chosen, -jnp.inf)) if log_sums is None else log_sums
        totals = (chosen - sums) + scores[..., None]
        # [batch, beams, width] -> [batch, count]; an index is beam * width + child.
        best, indices = _padded_top_k(jnp.where(is_child, totals, -jnp.inf), count)
        # [batch, beams, width] -> [batch, beams * width] -> [batch, count]
        return best, indices // width, _take(edges.reshape(edges.shape[0], -1), indices)

    # Large families are few and near the root: most steps gather far fewer children than the largest family has.
    # [batch, beams] -> []
    most = jnp.where(scores > -jnp.inf, trie.num_children(states), 0).max()
    branches = [lambda width=width: gather(width) for width in trie.widths]
    return lax.switch((most > jnp.asarray(trie.widths)).sum(), branches)


def _log_sums(logits: Float[Array, "batch beams width"]) -> Float[Array, "batch beams 1"]:
    """Return the log of the sum; a log-probability is a logit minus it.

    log_softmax would write the whole table once more.
    """
    return jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _padded_top_k(
    totals: Float[Array, "batch beams width"], k: int
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """Return the k best of a user's beams x width totals and their flat indices; -inf where there are fewer than k."""
    # [batch, beams, width] -> [batch, beams * width]
    flat = totals.reshape(totals.shape[0], -1)
    missing = k - flat.shape[1]
    if missing <= 0:
        return blockwise_top_k(flat, k)
    best, indices = blockwise_top_k(flat, flat.shape[1])
    padding = ((0, 0), (0, missing))
    return jnp.pad(best, padding, constant_values=-jnp.inf), jnp.pad(indices, padding)


def _update(
    search: _Search,
    candidates: Candidates,
    written: Any,
    num_nodes: Int[Array, ""],
    num_steps: Int[Array, ""],
    length_penalty: float | Float[Array, ""],
) -> _Search:
    """Move the candidates that ended in an item to the finished ones, and keep the best others running."""
    num_beams = search.items.shape[1]
    is_candidate = candidates.scores > -jnp.inf
    is_item = is_candidate & (candidates.states >= num_nodes)

    # [batch, 2 * beams] -> [batch, beams]
    running_scores, kept = blockwise_top_k(jnp.where(is_item, -jnp.inf, candidates.scores), num_beams)
    # Beams without a continuation stay at the root with score -inf.
    is_alive = running_scores > -jnp.inf
    states = jnp.where(is_alive, _take(candidates.states, kept), 0)
    tokens = _take(candidates.tokens, kept)

    length = (search.position + 1).astype(jnp.float32)
    penalty = length**length_penalty
    # Candidates after the first num_beams are only there to keep enough beams running: they do not finish.
    may_finish = is_item & (jnp.arange(2 * num_beams) < num_beams) & search.can_improve[:, None]
    finished_scores = jnp.where(may_finish, candidates.scores / penalty, -jnp.inf)
    # [batch, beams] and [batch, 2 * beams] -> [batch, 3 * beams]
    merged_scores = jnp.concatenate([search.item_scores, finished_scores], axis=1)
    merged_items = jnp.concatenate([search.items, candidates.states - num_nodes], axis=1)
    # [batch, 3 * beams] -> [batch, beams]
    item_scores, best = blockwise_top_k(merged_scores, num_beams)
    items = jnp.where(item_scores > -jnp.inf, _take(merged_items, best), -1)

    # As transformers' early_stopping=False: the best running beam is judged at its present length. [batch]
    can_improve = search.can_improve & (running_scores[:, 0] / penalty > item_scores[:, -1])
    # A score only falls as its beam grows. One that is not above the worst finished item, even over the length that
    # suits it best, can give no result, nor push out a beam that can.
    best_penalty = jnp.maximum(penalty, num_steps.astype(jnp.float32) ** length_penalty)
    may_enter = can_improve[:, None] & (running_scores / best_penalty > item_scores[:, -1:])
    running_scores = jnp.where(may_enter, running_scores, -jnp.inf)
    return _Search(
        position=search.position + 1,
        tokens=tokens,
        states=states,
        scores=running_scores,
        items=items,
        item_scores=item_scores,
        can_improve=can_improve,
        cache=search.cache.extend(written, search.position, _take(candidates.beams, kept)),
    )


def _take(array: Array, indices: Int[Array, "batch chosen"]) -> Array:
    """Return array[b, indices[b, j]]: [batch, n] -> [batch, chosen]."""
    return jnp.take_along_axis(array, indices, axis=1)


def greedy_search(
    step: Step,
    cache: Any,
    *,
    batch_size: int,
    sequences_per_row: int = 1,
    max_length: int,
    eos_token_id: int,
    pad_token_id: int,
    start_token_id: int,
) -> Int[Array, "batch sequences length"]:
    """Return the most likely token at every position, EOS kept and padding after it.

    The result has `max_length - 1` positions: `max_length` counts the start token, which is not returned. `cache`
    must have room for all positions but the last. Each of its `sequences_per_row` beams is a sequence of its own. The
    search stops as soon as every sequence has ended.
    """
    num_steps = max_length - 1
    shape = batch_size, sequences_per_row
    tokens = jnp.full((*shape, num_steps), pad_token_id, jnp.int32)
    first = jnp.full(shape, start_token_id, jnp.int32)
    is_running = jnp.ones(shape, bool)

    def is_unfinished(carry: tuple) -> Bool[Array, ""]:
        position, _, _, is_running, _ = carry
        return (position < num_steps) & is_running.any()

    def advance(carry: tuple) -> tuple:
        position, tokens, last, is_running, cache = carry
        # [batch, sequences] -> [batch, sequences, vocab]
        logits, written = step(last, position, cache)
        # On a CPU, argmax over a vocabulary is the slowest way to find a maximum.
        # [batch, sequences, vocab] -> [batch, sequences, 1]
        _, best = blockwise_top_k(logits, 1)
        last = jnp.where(is_running, best[..., 0], pad_token_id)
        # [batch, sequences, 1] into [batch, sequences, length], at `position`
        tokens = lax.dynamic_update_slice(tokens, last[..., None], (0, 0, position))
        cache = cache.extend(written, position, None)
        return position + 1, tokens, last, is_running & (last != eos_token_id), cache

    return lax.while_loop(is_unfinished, advance, (jnp.int32(0), tokens, first, is_running, cache))[1]
