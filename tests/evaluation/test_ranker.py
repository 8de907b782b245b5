"""Rankings against brute force."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.templates import PromptTemplate
from idgenrec_jax.decoding.catalogue import best_items
from idgenrec_jax.evaluation.catalogue_trie import catalogue_trie, searched_catalogue
from idgenrec_jax.evaluation.ranker import Ranker
from idgenrec_jax.models.t5 import T5, T5Config, shift_right

TOKENIZER = sample_tokenizer()
NUM_ITEMS, NUM_BEAMS = 12, 16
# Prefixes of one another, shared beginnings, unequal lengths.
ITEM_IDS = ((5,), (5, 6), (5, 6, 7), (5, 8), (9,), (9, 9, 9, 9), (10, 5), (10, 6), (11,), (12, 5, 6), (12, 5, 7), (13,))
CONFIG = T5Config(
    vocab_size=TOKENIZER.size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2
)
GRAPHDEF, PARAMS = nnx.split(T5(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)


def make_dataset(num_items=NUM_ITEMS, num_users=7, seed=0):
    """Users of 1 to 8 interactions, the first two too short to evaluate."""
    rng = np.random.default_rng(seed)
    lengths = [1, 2, *rng.integers(3, 9, num_users - 2)]
    return Dataset(
        name="shop",
        users=tuple(f"user{index}" for index in range(num_users)),
        items=tuple(f"item{index}" for index in range(num_items)),
        item_texts=("",) * num_items,
        sequences=tuple(rng.integers(0, num_items, length).astype(np.int32) for length in lengths),
    )


def make_renderer(target_text="{target}", **fields):
    template = PromptTemplate("sequential", "seen", "after {history} comes", target_text)
    return PromptRenderer(
        dataset=make_dataset(),
        templates=(PromptTokens(template, TOKENIZER, "shop"),),
        item_ids=ITEM_IDS,
        user_ids=None,
        eos_id=TOKENIZER.eos_id,
        max_history=2,
        max_prompt_length=64,
        **fields,
    )


@cache
def make_ranker(*, softmax="vocabulary", history="whole", **fields):
    """`fields` are those of EvaluationConfig."""
    evaluation = {"num_beams": NUM_BEAMS, "batch_size": 4, **fields}
    chosen = {"training.softmax": softmax, "data.history": history}
    return Ranker(
        GRAPHDEF, Config().override(chosen | {f"evaluation.{name}": value for name, value in evaluation.items()})
    )


def make_trie(renderer, layout, over_catalogue=False):
    return catalogue_trie(
        renderer,
        vocab_size=CONFIG.vocab_size,
        pad_token_id=TOKENIZER.pad_id,
        layout=layout,
        over_catalogue=over_catalogue,
    )


@partial(jax.jit, static_argnames="length_penalty")
def score_targets(prompts, prompt_mask, targets, target_mask, length_penalty):
    """The log-probability of each target after its prompt, over its length ** length_penalty; teacher-forced."""
    model = nnx.merge(GRAPHDEF, PARAMS)
    hidden = model.decode(shift_right(targets, 0), model.encode(prompts, prompt_mask), prompt_mask)
    log_probabilities = jax.nn.log_softmax(model.logits(hidden), axis=-1)
    chosen = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return (chosen * target_mask).sum(-1) / target_mask.sum(-1) ** length_penalty


def padded(rows, width):
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)], mask[index, : len(row)] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def brute_force(renderer, split, length_penalty):
    """Scores [users, items], every item scored by itself."""
    histories = [renderer.dataset.held_out(int(user), split)[0] for user in renderer.dataset.evaluation_users]
    prompts = [
        renderer.prompt(int(user), history, 0)
        for user, history in zip(renderer.dataset.evaluation_users, histories, strict=True)
    ]
    rows = [prompt for prompt in prompts for _ in range(NUM_ITEMS)]
    targets = [renderer.target(item, 0) for _ in prompts for item in range(NUM_ITEMS)]
    scores = score_targets(*padded(rows, 24), *padded(targets, 12), length_penalty)
    return np.asarray(scores).reshape(len(prompts), NUM_ITEMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "target_text", "fields"),
    [
        ("validation", "{target}", {"trie_layout": "csr", "length_penalty": 0.0}),
        ("test", "{target}", {"trie_layout": "dense", "length_penalty": 1.0, "batch_size": 3}),
        ("test", "the {target} red", {"trie_layout": "csr", "length_penalty": 0.0}),
    ],
)
def test_the_ranking_is_that_of_scoring_every_item(split, target_text, fields):
    renderer = make_renderer(target_text)
    trie = make_trie(renderer, fields["trie_layout"])
    ranking = make_ranker(**fields).rank(PARAMS, renderer, trie, split, title="test")
    expected = brute_force(renderer, split, fields["length_penalty"])
    order = np.argsort(-expected, axis=1, kind="stable")
    np.testing.assert_array_equal(ranking.users, renderer.dataset.evaluation_users)
    held_out = [renderer.dataset.held_out(int(user), split)[1] for user in ranking.users]
    np.testing.assert_array_equal(ranking.targets, held_out)
    np.testing.assert_array_equal(ranking.items[:, :NUM_ITEMS], order)
    np.testing.assert_allclose(
        ranking.scores[:, :NUM_ITEMS], np.take_along_axis(expected, order, axis=1), atol=1e-4, rtol=0
    )
    # There are fewer items than beams.
    assert (ranking.items[:, NUM_ITEMS:] == -1).all() and np.isneginf(ranking.scores[:, NUM_ITEMS:]).all()
    assert len({tuple(row) for row in order.tolist()}) > 1, "users must differ for the test to see a mixed-up order"


@pytest.mark.slow
def test_a_ranking_does_not_depend_on_layout_or_batch_size_and_cut_offs_end_at_the_beams():
    renderer = make_renderer()
    rankings = [
        make_ranker(num_beams=10, trie_layout=layout, batch_size=size).rank(
            PARAMS, renderer, make_trie(renderer, layout), "test", title="test"
        )
        for layout, size in (("csr", 5), ("dense", 3))
    ]
    np.testing.assert_array_equal(rankings[0].items, rankings[1].items)
    np.testing.assert_allclose(rankings[0].scores, rankings[1].scores, atol=1e-5)
    assert rankings[0].items.shape == (5, 10) and (rankings[0].items >= 0).all()
    assert set(rankings[0].metrics()) == {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@10"}


@pytest.mark.slow
def test_ranking_can_be_stopped_between_batches():
    class Stop(Exception):
        pass

    calls = []

    def check_stop():
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    renderer = make_renderer()
    with pytest.raises(Stop):
        make_ranker(trie_layout="csr", length_penalty=0.0).rank(
            PARAMS, renderer, make_trie(renderer, "csr"), "test", title="test", check_stop=check_stop
        )
    assert len(calls) == 2


@jax.jit
def logits_after(prompt, encoder_mask, is_real, targets):
    """The logits at every position of all targets after one prompt, teacher-forced."""
    model = nnx.merge(GRAPHDEF, PARAMS)
    encoded = model.encode(prompt[None], encoder_mask[None])
    encoded = jnp.broadcast_to(encoded, (len(targets), *encoded.shape[1:]))
    mask = jnp.broadcast_to(is_real, encoded.shape[:2])
    return model.logits(model.decode(shift_right(targets, 0), encoded, mask))


def choice_scores(prompt, encoder_mask):
    """The log-probability of every item after one prompt: the sum over choices of those among their children."""
    children = {}
    targets = [(*ids, TOKENIZER.eos_id) for ids in ITEM_IDS]
    for target in targets:
        for position, token in enumerate(target):
            children.setdefault(target[:position], set()).add(token)
    missing = (0, 24 - len(prompt))
    is_real = np.pad(np.ones(len(prompt), bool), missing)
    mask = np.pad(encoder_mask, (missing, missing))
    logits = np.asarray(logits_after(np.pad(prompt, missing), mask, is_real, padded(targets, 8)[0]), np.float64)
    scores = np.zeros(NUM_ITEMS)
    for item, target in enumerate(targets):
        for position, token in enumerate(target):
            among = logits[item, position, sorted(children[target[:position]])]
            scores[item] += logits[item, position, token] - np.log(np.exp(among).sum())
    return scores


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_over_the_catalogue_a_causal_ranking_without_seen_items_is_that_of_scoring_every_item(layout):
    ranker = make_ranker(softmax="catalogue", history="causal", seen_items="remove", trie_layout=layout)
    trie = make_trie(make_renderer(), layout, over_catalogue=True)
    rng = np.random.default_rng(5)
    tokens = rng.integers(3, 60, (2, 8)).astype(np.int32)
    items = np.array([[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 1, 2, 3, 4]], np.int32)
    seen = np.array([[3, -1, 7], [-1, -1, -1]], np.int32)
    found, scores = ranker.search(PARAMS, tokens, np.ones((2, 8), bool), trie, prompt_items=items, seen=seen)
    for row in range(2):
        expected = choice_scores(tokens[row], items[row][None, :] <= items[row][:, None])
        assert np.exp(expected).sum() == pytest.approx(1.0, rel=0, abs=1e-5)
        order = [item for item in np.argsort(-expected).tolist() if item not in seen[row]]
        np.testing.assert_array_equal(found[row, : len(order)], order)
        np.testing.assert_allclose(scores[row, : len(order)], expected[order], atol=1e-4, rtol=0)
        assert (found[row, len(order) :] == -1).all()
        whole = choice_scores(tokens[row], np.ones((8, 8), bool))
        assert np.abs(whole - expected).max() > 1e-3, "the order of items must matter for this to show that it is used"


def test_the_loss_over_the_catalogue_is_the_mean_over_targets_and_what_came_before_them_is_not_ranked():
    renderer = make_renderer(over_catalogue=True, is_causal=True)
    ranker = make_ranker(softmax="catalogue", history="causal", seen_items="remove", batch_size=3)
    ranking = ranker.rank(PARAMS, renderer, make_trie(renderer, "auto", over_catalogue=True), "test", title="test")
    losses = []
    for row, user in enumerate(ranking.users):
        history, target = renderer.dataset.held_out(int(user), "test")
        prompt, items = map(np.array, renderer.numbered_prompt(int(user), history, 0))
        expected = choice_scores(prompt, items[None, :] <= items[:, None])
        losses.append(-expected[target])
        left = [item for item in np.argsort(-expected).tolist() if item not in history]
        np.testing.assert_array_equal(ranking.items[row, : len(left)], left)
        assert (ranking.items[row, len(left) :] == -1).all()
    assert ranking.loss == pytest.approx(np.mean(losses), rel=0, abs=1e-5)


@pytest.mark.parametrize(
    ("softmax", "history", "seen_items", "message"),
    [
        ("vocabulary", "whole", "keep", "a trie over the catalogue: given"),
        ("catalogue", "causal", "keep", "the items of prompts: not given"),
        ("catalogue", "whole", "remove", "the items seen: not given"),
    ],
)
def test_what_the_configuration_does_not_ask_for_is_refused(softmax, history, seen_items, message):
    trie = make_trie(make_renderer(), "csr", over_catalogue=True)
    ranker = make_ranker(softmax=softmax, history=history, seen_items=seen_items)
    with pytest.raises(ValueError, match=message):
        ranker.search(PARAMS, np.ones((1, 8), np.int32), np.ones((1, 8), bool), trie)


def make_catalogue(search, renderer, over_catalogue):
    return searched_catalogue(
        search,
        renderer,
        vocab_size=CONFIG.vocab_size,
        pad_token_id=TOKENIZER.pad_id,
        layout="csr",
        over_catalogue=over_catalogue,
    )


@pytest.mark.parametrize(
    ("softmax", "seen_items", "target_text"),
    [
        ("vocabulary", "keep", "the {target} red"),
        ("catalogue", "keep", "{target}"),
        ("catalogue", "remove", "{target}"),
    ],
)
def test_an_exact_ranking_is_that_of_scoring_every_item(softmax, seen_items, target_text):
    over_catalogue = softmax == "catalogue"
    renderer = make_renderer(target_text, over_catalogue=over_catalogue)
    ranker = make_ranker(softmax=softmax, seen_items=seen_items, num_beams=10)
    ranking, beam = (
        ranker.rank(PARAMS, renderer, make_catalogue(search, renderer, over_catalogue), "test", title="test")
        for search in ("exact", "beam")
    )
    scores = None if over_catalogue else brute_force(renderer, "test", 0.0)
    assert ranking.loss == pytest.approx(beam.loss, abs=1e-5)
    for row, (user, target) in enumerate(zip(ranking.users, ranking.targets, strict=True)):
        history, _ = renderer.dataset.held_out(int(user), "test")
        if over_catalogue:
            prompt = np.array(renderer.prompt(int(user), history, 0))
            expected = choice_scores(prompt, np.ones((len(prompt), len(prompt)), bool))
        else:
            expected = scores[row]
        order = np.argsort(-expected, kind="stable").tolist()
        order = [item for item in order if seen_items == "keep" or item not in history]
        best, missing = order[:10], 10 - len(order[:10])
        np.testing.assert_array_equal(ranking.items[row], best + [-1] * missing)
        np.testing.assert_allclose(ranking.scores[row, : len(best)], expected[best], atol=1e-4, rtol=0)
        # The place of the target is that among all items, below the last of the ten too.
        assert ranking.ranks()[row] == (order.index(target) if target in order else -1)


def test_all_that_is_tied_with_the_target_comes_before_it():
    scores = jnp.array([[-1.0, -2.0, -2.0, -2.0, -3.0], [-1.0, -2.0, -2.0, -2.0, -3.0]])
    found, places = best_items(scores, None, jnp.array([1, 0]), 2)
    # Items 1, 2 and 3 have one score: 1 is among the two best, but counts as the last of the three.
    assert found.items.tolist() == [[0, 1], [0, 1]] and places.tolist() == [3, 0]
    found, places = best_items(scores, jnp.array([[3, 0, -1], [4, 1, 2]]), jnp.array([2, 2]), 4)
    assert found.items.tolist() == [[1, 2, 4, -1], [0, 3, -1, -1]] and places.tolist() == [1, -1]
    assert jnp.isneginf(found.scores[1, 2:]).all()


def test_every_target_of_a_user_is_ranked_from_all_that_was_before_it():
    """As the last item of a user whose sequence ends there; leave-one-out as boundaries has its very metrics."""
    dataset = make_dataset()
    lengths = [len(sequence) for sequence in dataset.sequences]
    ranker, catalogue = make_ranker(search="exact"), make_catalogue("exact", make_renderer(), over_catalogue=False)

    def rank(split, **changes):
        renderer = dataclasses.replace(make_renderer(), dataset=dataclasses.replace(dataset, **changes))
        return ranker.rank(PARAMS, renderer, catalogue, split, title=split)

    ends = np.asarray([(2, max(2, length - 2)) if length > 2 else (length, length) for length in lengths], np.int32)
    for split in ("validation", "test"):
        starts, stops = ends.T if split == "validation" else (ends[:, 1], lengths)
        cases = [(user, place) for user in range(len(lengths)) for place in range(starts[user], stops[user])]
        found = rank(split, boundaries=ends)
        assert found.users.tolist() == [user for user, _ in cases] and len(cases) > len(set(found.users.tolist()))
        cut = {
            "users": tuple(map(str, cases)),
            "sequences": tuple(dataset.sequences[user][: place + 1] for user, place in cases),
        }
        alone = rank("test", **cut)
        np.testing.assert_array_equal(found.targets, alone.targets)
        np.testing.assert_array_equal(found.items, alone.items)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)
        ranks = [row.index(target) for row, target in zip(found.items.tolist(), found.targets.tolist(), strict=True)]
        assert found.ranks().tolist() == ranks
        metrics = found.metrics()
        assert metrics["hr@5"] == pytest.approx(sum(rank < 5 for rank in ranks) / len(cases))
        assert metrics["mrr@16"] == pytest.approx(sum(1 / (rank + 1) for rank in ranks) / len(cases))
    last = np.asarray([(length - 2, length - 1) if length > 2 else (length, length) for length in lengths], np.int32)
    plain, given = rank("test"), rank("test", boundaries=last)
    np.testing.assert_array_equal(plain.scores, given.scores)
    assert plain.metrics() == given.metrics() and plain.loss == given.loss
