"""Diverse beam search inside lax.while_loop: groups of beams that avoid one another's tokens.

Gives the sequences, order and scores of transformers' group beam search (4.56.2, the last release that has it
built in) with `num_beam_groups`, `diversity_penalty`, `no_repeat_ngram_size`, `min_length`, `do_sample=False` and
`early_stopping=False`.
The method is of Vijayakumar et al., "Diverse Beam Search", AAAI 2018, with Hamming diversity.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from idgenrec_jax.decoding.beam import Step
from idgenrec_jax.decoding.top_k import blockwise_top_k
from idgenrec_jax.errors import InputError

PEEL_FROM_WIDTH = 256
"""Width from which a model's first token is better decoded on one beam only (`peel_first`).

That saves nearly one step of a search, but puts a second copy of the step into the program: smaller models lose more by
its compilation.
"""

# The score of the beams of a group that may not be continued in the first step; finite, as in transformers.
_CLOSED = -1e9


class DiverseResult(NamedTuple):
    """The sequences of all groups, best first: `tokens` int32 [batch, beams, length], `scores` float32 [batch, beams].

    Tokens have no start token; EOS is followed by padding. A score is the sum of the penalised log-probabilities,
    EOS included, over (their number) ** length_penalty.
    """

    tokens: Int[Array, "batch beams length"]
    scores: Float[Array, "batch beams"]


class _Group(NamedTuple):
    """The running beams and the finished sequences of one group, or of all with one more axis after batch.

    Finished sequences are best first, with score -inf where there is none yet. A group that is done changes no more.
    """

    tokens: Int[Array, "*groups beams length"]
    scores: Float[Array, "*groups beams"]
    finished_tokens: Int[Array, "*groups beams length"]
    finished_scores: Float[Array, "*groups beams"]
    is_done: Bool[Array, "*groups"]


class _Rules(NamedTuple):
    """The token ids and the arithmetic that every group shares; see diverse_beam_search."""

    eos_token_id: int
    pad_token_id: int
    diversity_penalty: Float[Array, "batch 1 1"]
    length_penalty: float | Float[Array, ""]


def diverse_beam_search(
    step: Step,
    cache: Any,
    *,
    batch_size: int,
    num_beams: int,
    num_groups: int,
    diversity_penalty: float | Float[Array, ""] | Float[Array, " batch"],
    min_length: int | Int[Array, ""] | Int[Array, " batch"],
    max_length: int,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int,
    start_token_id: int,
    length_penalty: float | Float[Array, ""] = 1.0,
    no_repeat_ngram_size: int = 0,
    peel_first: bool = True,
) -> DiverseResult:
    """Returns `num_beams` sequences per row, `num_beams / num_groups` of each group.

    At every position the groups choose one after the other, and a token's log-probability is lowered by
    `diversity_penalty` (0 or more) for every beam of an earlier group that has just chosen it. `min_length` and
    `max_length` count the start token: EOS is forbidden while there are fewer than `min_length` tokens. `cache` must
    have room for `max_length - 2` positions. `diversity_penalty` and `min_length` may be traced, and may be arrays
    [batch]: each row then gives what it gives with its own two numbers. No sequence of
    `no_repeat_ngram_size` tokens comes twice in a beam, whose start token counts (0: it may). `peel_first`
    decodes the first token on one beam, outside the loop. Raises InputError when the beams cannot be divided into the
    groups, or for a negative `no_repeat_ngram_size`.
    """
    if num_groups < 1 or num_beams % num_groups:
        raise InputError(f"num_groups: found {num_groups} with num_beams {num_beams}, expected a divisor of num_beams")
    if no_repeat_ngram_size < 0:
        raise InputError(f"no_repeat_ngram_size: found {no_repeat_ngram_size}, expected 0 or more")
    group_size, length = num_beams // num_groups, max_length - 1
    shape = (batch_size, num_groups, group_size)
    penalties, min_lengths = (
        jnp.broadcast_to(jnp.asarray(numbers, dtype), (batch_size,))[:, None, None]
        for numbers, dtype in ((diversity_penalty, jnp.float32), (min_length, jnp.int32))
    )
    rules = _Rules(eos_token_id, pad_token_id, penalties, length_penalty)
    # The 2 * group_size best continuations of a group are among those of each beam; every earlier beam can push
    # down one of them, and EOS may be forbidden.
    num_candidates = min(vocab_size, 2 * group_size + (num_groups - 1) * group_size + 1)
    padding = jnp.full((*shape, length), pad_token_id, jnp.int32)
    groups = _Group(
        tokens=padding,
        scores=jnp.full(shape, _CLOSED, jnp.float32).at[..., 0].set(0.0),
        finished_tokens=padding,
        finished_scores=jnp.full(shape, -jnp.inf, jnp.float32),
        is_done=jnp.zeros((batch_size, num_groups), bool),
    )
    first = jnp.full((batch_size, 1 if peel_first else num_beams), start_token_id, jnp.int32)

    def is_unfinished(carry: tuple) -> Bool[Array, ""]:
        position, _, groups, _ = carry
        return (position < length) & ~groups.is_done.all()

    def advance(carry: tuple) -> tuple:
        position, last, groups, cache = carry
        is_first = last.shape[1] < num_beams
        logits, written = step(last, position, cache)
        logits = logits.astype(jnp.float32)
        # Before the ban: as in transformers, what is banned keeps its share of the probability.
        log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        if no_repeat_ngram_size:
            written_tokens = groups.tokens.reshape(batch_size, num_beams, length)[:, : last.shape[1]]
            logits = _ban_repeated(logits, written_tokens, position, start_token_id, no_repeat_ngram_size)
        top_logits, top_tokens = blockwise_top_k(logits, num_candidates)
        top = top_logits - log_sum
        top = jnp.where((top_tokens == eos_token_id) & (position + 1 < min_lengths), -jnp.inf, top)
        top, top_tokens = (
            jnp.broadcast_to(array, (batch_size, num_beams, num_candidates)).reshape(*shape, num_candidates)
            for array in (top, top_tokens)
        )
        chosen = jnp.zeros((batch_size, 0), jnp.int32)
        updated, parents = [], []
        for index in range(num_groups):
            group = jax.tree.map(lambda array, index=index: array[:, index], groups)
            group, tokens, parent = _advance_group(
                group, top[:, index], top_tokens[:, index], chosen, position, rules
            )
            chosen = jnp.concatenate([chosen, tokens], axis=1)
            updated.append(group)
            parents.append(parent + index * group_size)
        groups = jax.tree.map(lambda *arrays: jnp.stack(arrays, axis=1), *updated)
        beams = None
        if is_first:
            beams = jnp.zeros((batch_size, num_beams), jnp.int32)
        elif group_size > 1:
            beams = jnp.concatenate(parents, axis=1)
        return position + 1, chosen, groups, cache.extend(written, position, beams)

    carry = (jnp.int32(0), first, groups, cache)
    _, _, groups, _ = lax.while_loop(is_unfinished, advance, advance(carry) if peel_first else carry)
    return _finalize(groups, length, length_penalty)


def _ban_repeated(
    logits: Float[Array, "batch beams vocab"],
    tokens: Int[Array, "batch beams length"],
    position: Int[Array, ""],
    start_token_id: int,
    size: int,
) -> Float[Array, "batch beams vocab"]:
    """Returns the logits with -inf for tokens that would end a sequence of `size` tokens a second time in their beam.

    Of `tokens` the first `position` are written; the start token counts as one before them.
    """
    batch_size, num_beams, vocab_size = logits.shape
    # [batch, beams, length] -> [batch, beams, length + 1]; token `position` is the last one.
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (1, 0)), constant_values=start_token_id)
    ends = tokens[..., size - 1 :]
    num_windows = ends.shape[-1]
    is_repeated = jnp.arange(num_windows) + (size - 1) <= position
    is_repeated = jnp.broadcast_to(is_repeated, ends.shape)
    for offset in range(size - 1):
        recent = lax.dynamic_index_in_dim(tokens, position + 2 - size + offset, axis=-1)
        is_repeated &= tokens[..., offset : offset + num_windows] == recent
    # An index outside the vocabulary is dropped.
    banned = jnp.where(is_repeated, ends, vocab_size)
    rows, beams = jnp.arange(batch_size)[:, None, None], jnp.arange(num_beams)[:, None]
    return logits.at[rows, beams, banned].set(-jnp.inf, mode="drop")


def _advance_group(
    group: _Group,
    log_probabilities: Float[Array, "batch beams candidates"],
    candidate_tokens: Int[Array, "batch beams candidates"],
    chosen: Int[Array, "batch earlier"],
    position: Int[Array, ""],
    rules: _Rules,
) -> tuple[_Group, Int[Array, "batch beams"], Int[Array, "batch beams"]]:
    """Lets one group choose its next tokens; returns it with the tokens and the beams within the group they continue.

    `chosen` are the tokens just chosen by all beams of earlier groups. A group that is done chooses padding, which
    later groups are penalised for as for any other token.
    """
    batch_size, group_size, num_candidates = candidate_tokens.shape
    uses = (candidate_tokens[..., None] == chosen[:, None, None, :]).sum(-1)
    totals = (log_probabilities - rules.diversity_penalty * uses) + group.scores[..., None]
    # More candidates than this cannot be needed: at most group_size of them are EOS, one per beam.
    scores, indices = blockwise_top_k(totals.reshape(batch_size, -1), 2 * group_size)
    beams = indices // num_candidates
    tokens = _take(candidate_tokens.reshape(batch_size, -1), indices)
    is_eos = tokens == rules.eos_token_id
    penalty = (position + 1).astype(jnp.float32) ** rules.length_penalty

    may_finish = is_eos & (jnp.arange(2 * group_size) < group_size) & ~group.is_done[:, None]
    finished_scores = jnp.where(may_finish, scores / penalty, -jnp.inf)
    parent_tokens = _take(group.tokens, beams)
    ended_tokens = lax.dynamic_update_slice(parent_tokens, tokens[..., None], (0, 0, position))
    finished_tokens, finished_scores = _keep_best(
        jnp.concatenate([group.finished_tokens, ended_tokens], axis=1),
        jnp.concatenate([group.finished_scores, finished_scores], axis=1),
        group_size,
    )
    worst = finished_scores[:, -1]
    is_done = group.is_done | ((worst > -jnp.inf) & (worst >= scores[:, 0] / penalty))

    # The first group_size candidates other than EOS run on: a stable sort brings them to the front, best first.
    order = jnp.argsort(is_eos, axis=1, stable=True)[:, :group_size]
    was_done = group.is_done[:, None]
    next_tokens = jnp.where(was_done, rules.pad_token_id, _take(tokens, order))
    group = _Group(
        tokens=_take(ended_tokens, order),
        scores=jnp.where(was_done, 0.0, _take(scores, order)),
        finished_tokens=finished_tokens,
        finished_scores=finished_scores,
        is_done=is_done,
    )
    return group, next_tokens, jnp.where(was_done, 0, _take(beams, order))


def _finalize(groups: _Group, length: int, length_penalty: float | Float[Array, ""]) -> DiverseResult:
    """Adds the running beams of groups that are not done to their finished ones, and sorts all by score."""
    batch_size, num_groups, group_size, _ = groups.tokens.shape
    flat = jax.tree.map(lambda array: array.reshape(batch_size * num_groups, *array.shape[2:]), groups)
    running_scores = jnp.where(flat.is_done[:, None], -jnp.inf, flat.scores / jnp.float32(length) ** length_penalty)
    tokens, scores = _keep_best(
        jnp.concatenate([flat.finished_tokens, flat.tokens], axis=1),
        jnp.concatenate([flat.finished_scores, running_scores], axis=1),
        group_size,
    )
    # Equal scores: transformers takes from the end of an ascending stable sort, so the later group comes first.
    tokens = tokens.reshape(batch_size, num_groups * group_size, length)[:, ::-1]
    scores = scores.reshape(batch_size, num_groups * group_size)[:, ::-1]
    return DiverseResult(*_keep_best(tokens, scores, num_groups * group_size))


def _keep_best(
    tokens: Int[Array, "batch sequences length"], scores: Float[Array, "batch sequences"], count: int
) -> tuple[Int[Array, "batch count length"], Float[Array, "batch count"]]:
    """Returns the `count` sequences with the highest scores, best first; of equal ones the first."""
    best, indices = blockwise_top_k(scores, count)
    return _take(tokens, indices), best


def _take(array: Array, indices: Int[Array, "batch chosen"]) -> Array:
    """Returns array[b, indices[b, j]], whole rows where the array has a third axis."""
    return jnp.take_along_axis(array, indices if array.ndim == 2 else indices[..., None], axis=1)
