"""The constrained beam search and the greedy search on models small enough to enumerate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from idgenrec_jax.decoding.beam import available_results, constrained_beam_search, greedy_search
from idgenrec_jax.decoding.trie import build_trie
from idgenrec_jax.errors import InputError

VOCAB_SIZE, EOS, PAD = 24, 1, 0


class Memory(NamedTuple):
    """A model whose logits depend on all earlier tokens of the beam: a table row per token, summed with decay."""

    table: Array
    sums: Array

    def extend(self, written, position, beams):
        sums = written.sums
        return self._replace(sums=sums if beams is None else jnp.take_along_axis(sums, beams[..., None], axis=1))


class Sums(NamedTuple):
    """What a step of that model writes."""

    sums: Array

    def widened(self, num_beams):
        return Sums(jnp.pad(self.sums, ((0, 0), (0, num_beams - self.sums.shape[1]), (0, 0))))


def step(tokens, position, cache):
    sums = 0.7 * cache.sums[:, : tokens.shape[1]] + cache.table[jnp.arange(tokens.shape[0])[:, None], tokens]
    return sums + 0.1 * position, Sums(sums)


def random_memory(seed, batch_size, num_beams):
    """A different model for every row of the batch."""
    table = 2 * np.random.default_rng(seed).standard_normal((batch_size, VOCAB_SIZE, VOCAB_SIZE))
    return Memory(jnp.asarray(table, jnp.float32), jnp.zeros((batch_size, num_beams, VOCAB_SIZE)))


def log_probability(table, sequence, children=None):
    """The sum of log-probabilities of a sequence and EOS, in numpy.

    They are over `children`, {prefix: tokens that may follow}, where it is given, otherwise over the vocabulary.
    """
    total, sums, last = 0.0, np.zeros(VOCAB_SIZE), PAD
    for position, token in enumerate((*sequence, EOS)):
        sums = 0.7 * sums + table[last]
        logits = sums + 0.1 * position
        among = logits if children is None else logits[sorted(children[tuple(sequence[:position])])]
        total += logits[token] - np.log(np.exp(among).sum())
        last = token
    return total


def children_of(sequences):
    """{prefix: the tokens that may follow it}."""
    children = {}
    for sequence in sequences:
        for position, token in enumerate((*sequence, EOS)):
            children.setdefault(tuple(sequence[:position]), set()).add(token)
    return children


def plain_search(table, sequences, num_beams, seen):
    """[(score, item)], best first: the search over choices, in lists and dictionaries."""
    children = children_of(sequences)
    below = {}
    for item, sequence in enumerate(sequences):
        for length in range(len(sequence) + 1):
            below.setdefault(tuple(sequence[:length]), []).append(item)
        below[(*sequence, EOS)] = [item]
    running, finished, position = [(0.0, (), np.zeros(VOCAB_SIZE))], [], 0
    while running:
        candidates = []
        for score, prefix, sums in running:
            sums = 0.7 * sums + table[prefix[-1] if prefix else PAD]
            logits = sums + 0.1 * position
            tokens = sorted(children[prefix])
            log_sum = np.log(np.exp(logits[tokens]).sum())
            candidates += [(score + logits[token] - log_sum, (*prefix, token), sums) for token in tokens]
        candidates = [(*found, below[found[1]][0] if len(below[found[1]]) == 1 else None) for found in candidates]
        candidates = sorted((found for found in candidates if found[3] not in seen), key=lambda found: -found[0])
        candidates = candidates[: 2 * num_beams]
        finished += [(score, item) for score, _, _, item in candidates[:num_beams] if item is not None]
        finished = sorted(finished, key=lambda found: -found[0])[:num_beams]
        worst = finished[-1][0] if len(finished) == num_beams else -np.inf
        running = [found[:3] for found in candidates if found[3] is None][:num_beams]
        running = [found for found in running if found[0] > worst]
        position += 1
    return finished


def random_sequences(seed, count):
    rng = np.random.default_rng(seed)
    found = {tuple(rng.integers(2, VOCAB_SIZE, rng.integers(1, 5)).tolist()): None for _ in range(3 * count)}
    return list(found)[:count]


def search(cache, trie, num_beams, num_results, length_penalty=0.0, max_length=None, narrow=(), seen=None):
    def step_of_columns(tokens, position, cache):
        logits, written = step(tokens, position, cache)
        return logits if trie.tokens is None else logits[..., trie.tokens], written

    return constrained_beam_search(
        step_of_columns, cache, trie, batch_size=cache.table.shape[0], num_beams=num_beams, num_results=num_results,
        start_token_id=PAD, length_penalty=length_penalty, max_length=max_length,
        narrow=narrow, seen=seen,
    )  # fmt: skip


@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("over_catalogue", [False, True])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_with_a_beam_per_item_the_ranking_is_exhaustive(layout, over_catalogue, with_seen):
    sequences = random_sequences(0, 30)
    trie = build_trie(
        sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS, layout=layout, over_catalogue=over_catalogue
    )
    cache = random_memory(1, 3, 32)
    seen = [[4, 29, 0, -1, 17], [-1] * 5, [-1, 2, 2, 5, -1]]
    # 30 items, 32 beams: nothing is pruned, so the search must equal the scores of all items, sorted.
    result = search(cache, trie, 32, 32, seen=jnp.asarray(seen) if with_seen else None)
    children = children_of(sequences) if over_catalogue else None
    for row in range(3):
        table = np.asarray(cache.table[row], np.float64)
        totals = np.array([log_probability(table, ids, children) for ids in sequences])
        if over_catalogue:
            assert np.exp(totals).sum() == pytest.approx(1.0, rel=0, abs=1e-5)
        order = [item for item in np.argsort(-totals).tolist() if not with_seen or item not in seen[row]]
        np.testing.assert_array_equal(np.asarray(result.items[row]), order + [-1] * (32 - len(order)))
        np.testing.assert_allclose(np.asarray(result.scores[row, : len(order)]), totals[order], atol=1e-4)
        assert np.isneginf(np.asarray(result.scores[row, len(order) :])).all()


def test_over_the_catalogue_200_searches_equal_a_plain_one():
    rng = np.random.default_rng(12)
    run = jax.jit(lambda cache, trie, seen: search(cache, trie, 5, 5, narrow=(1, 3), seen=seen))
    compared = pruned = 0
    for case, count in enumerate([*([1, 2, 5, 8, 20, 40, 70] * 7), 2000]):
        sequences = random_sequences(100 + case, count)
        seen = rng.integers(-1, count, (4, 6)) if case % 2 else np.full((4, 6), -1)
        cache = random_memory(case, 4, 5)
        found = [
            run(
                cache,
                build_trie(sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS, layout=layout, over_catalogue=True),
                jnp.asarray(seen),
            )
            for layout in ("dense", "csr")
        ]
        np.testing.assert_array_equal(found[0].items, found[1].items)
        np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-5)
        for row in range(4):
            removed = set(seen[row].tolist()) - {-1}
            expected = plain_search(np.asarray(cache.table[row], np.float64), sequences, 5, removed)
            scores, items = zip(*expected, strict=True) if expected else ((), ())
            items_found, scores_found = np.asarray(found[0].items[row]), np.asarray(found[0].scores[row])
            np.testing.assert_array_equal(items_found, [*items, *[-1] * (5 - len(items))])
            np.testing.assert_allclose(scores_found[: len(items)], scores, atol=1e-4)
            compared, pruned = compared + 1, pruned + (count - len(removed) > 5)
    assert compared == 200 and pruned > 80


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_layouts_agree_and_no_item_comes_twice(length_penalty):
    sequences = random_sequences(2, 400)
    results = []
    for layout in ("csr", "dense"):
        trie = build_trie(sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS, layout=layout)
        results.append(search(random_memory(3, 4, 7), trie, 7, 5, length_penalty))
    csr, dense = results
    np.testing.assert_array_equal(np.asarray(csr.items), np.asarray(dense.items))
    np.testing.assert_allclose(np.asarray(csr.scores), np.asarray(dense.scores), atol=1e-5)
    assert csr.items.shape == (4, 5)
    for row in np.asarray(csr.items):
        assert len(set(row)) == 5 and (row >= 0).all() and (row < 400).all()


def test_scores_are_sums_over_a_power_of_the_length_with_eos():
    sequences = random_sequences(4, 12)
    trie = build_trie(sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    cache = random_memory(5, 1, 12)
    result = search(cache, trie, 12, 12, length_penalty=0.5)
    for item, score in zip(np.asarray(result.items[0]), np.asarray(result.scores[0]), strict=True):
        total = log_probability(np.asarray(cache.table[0], np.float64), sequences[item])
        assert abs(score - total / (len(sequences[item]) + 1) ** 0.5) < 1e-4


def test_exact_ties_return_each_item_once_in_token_order():
    # A constant model: items of one length have the very same score.
    trie = build_trie([(9, 3), (4,), (2, 5), (2, 4), (7,)], vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    cache = Memory(jnp.zeros((1, VOCAB_SIZE, VOCAB_SIZE)), jnp.zeros((1, 5, VOCAB_SIZE)))
    result = search(cache, trie, 5, 5)
    assert np.asarray(result.items).tolist() == [[1, 4, 3, 2, 0]]


@pytest.mark.parametrize("narrow", [(1,), (2,), (5,), (1, 3), (1, 2, 4, 5)])
def test_positions_decoded_with_fewer_beams_find_the_same(narrow):
    # Prefixes shared by all, then by few: the number of running beams falls and rises again.
    sequences = [(2, *(3 + index // 3**place % 3 for place in range(4)), *[9] * (index % 3)) for index in range(81)]
    sequences += random_sequences(8, 4)
    trie = build_trie(sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    few, all_beams = (search(random_memory(9, 3, 6), trie, 6, 6, narrow=counts) for counts in (narrow, ()))
    np.testing.assert_array_equal(few.items, all_beams.items)
    np.testing.assert_allclose(few.scores, all_beams.scores, rtol=1e-6)


def test_a_max_length_without_room_for_a_token_is_refused():
    trie = build_trie([[5]], vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    with pytest.raises(InputError, match="max_length: found 1, expected at least 2"):
        search(random_memory(6, 2, 3), trie, 3, 3, max_length=1)


def test_items_longer_than_max_length_are_left_out():
    trie = build_trie([(2, 3, 4), (5,), (6, 7)], vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    # Start token, two tokens and EOS.
    result = search(random_memory(6, 2, 3), trie, 3, 3, max_length=4)
    assert all(sorted(row) == [-1, 1, 2] for row in np.asarray(result.items).tolist())


def test_asking_for_more_results_than_items_says_so(caplog):
    trie = build_trie([(2,), (3,)], vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    with caplog.at_level("WARNING", logger="absl"):
        assert available_results(trie.num_items, 2) == 2
        assert not caplog.records
        assert available_results(trie.num_items, 10) == 2
    assert "10 results were asked for, but the catalogue has 2 items" in caplog.text


def test_more_results_than_beams_are_refused():
    trie = build_trie([(2,), (3,)], vocab_size=VOCAB_SIZE, eos_token_id=EOS)
    with pytest.raises(InputError, match="num_results: found 3 with num_beams 2"):
        search(random_memory(0, 1, 2), trie, 2, 3)


def test_a_new_catalogue_of_similar_size_does_not_recompile():
    traces = []

    @jax.jit
    def run(cache, trie):
        traces.append(trie.layout)
        return search(cache, trie, 4, 4)

    cache = random_memory(7, 2, 4)
    for seed, count in ((0, 30), (1, 40), (2, 20)):
        trie = build_trie(random_sequences(seed, count), vocab_size=VOCAB_SIZE, eos_token_id=EOS)
        assert (np.asarray(run(cache, trie).items) < count).all()
    assert traces == ["csr"]


def test_greedy_takes_the_best_token_until_eos_and_pads():
    cache = random_memory(8, 6, 1)
    cache = cache._replace(table=cache.table.at[..., EOS].add(1.0))
    found = np.asarray(
        greedy_search(step, cache, batch_size=6, max_length=9, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD)
    )[:, 0]
    expected = np.full((6, 8), PAD)
    for row, table in enumerate(np.asarray(cache.table)):
        sums, last = np.zeros(VOCAB_SIZE), PAD
        for position in range(8):
            sums = 0.7 * sums + table[last]
            last = expected[row, position] = sums.argmax()
            if last == EOS:
                break
    np.testing.assert_array_equal(found, expected)
    assert (found == EOS).any() and (found[:, -1] != PAD).any(), "the case must hold ended and unended sequences"
