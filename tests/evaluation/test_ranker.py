"""Rankings against brute force."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.config import EvaluationConfig
from idgenrec_jax.data.batches import PromptRenderer
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.prompts import PromptTemplate, PromptTokens
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.evaluation.catalogue_trie import catalogue_trie
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


def make_renderer(target_text="{target}"):
    template = PromptTemplate("sequential", "seen", "after {history} comes", target_text)
    return PromptRenderer(
        dataset=make_dataset(),
        templates=(PromptTokens(template, TOKENIZER, "shop"),),
        item_ids=ITEM_IDS,
        user_ids=None,
        eos_id=TOKENIZER.eos_id,
        max_history=2,
        max_prompt_length=64,
    )


@cache
def make_ranker(**fields):
    config = dataclasses.replace(EvaluationConfig(num_beams=NUM_BEAMS, batch_size=4), **fields)
    return Ranker(GRAPHDEF, config)


def make_trie(renderer, layout):
    return catalogue_trie(
        renderer, vocab_size=CONFIG.vocab_size, pad_token_id=TOKENIZER.pad_id, layout=layout
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
        make_ranker(num_beams=6, trie_layout=layout, batch_size=size).rank(
            PARAMS, renderer, make_trie(renderer, layout), "test", title="test"
        )
        for layout, size in (("csr", 5), ("dense", 3))
    ]
    np.testing.assert_array_equal(rankings[0].items, rankings[1].items)
    np.testing.assert_allclose(rankings[0].scores, rankings[1].scores, atol=1e-5)
    assert rankings[0].items.shape == (5, 6) and (rankings[0].items >= 0).all()
    assert set(rankings[0].metrics()) == {"hr@1", "hr@5", "ndcg@5", "mrr@6"}


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
