"""New IDs that must beat the old ones: measured one prompt at a time, unique, and never worse by their own measure."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from idgenrec_jax.ids.candidates import Candidate, with_old_ids
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.training.acceptance import CandidateScorer, Scored, accepted_table, examples_with_items
from idgenrec_jax.training.choice_softmax import choice_table
from tests.training.test_catalogue_loss import (
    GRAPHDEF,
    ITEM_IDS,
    PARAMS,
    TOKENIZER,
    make_renderer,
    may_follow,
)

# Of all prompts and targets here, so that they are compiled once.
_WIDTH, _LENGTH = 128, 12


def brute_force_examples(dataset, max_history):
    """For each item, every (user, position) of training whose last `max_history` items hold it."""
    found = [[] for _ in dataset.items]
    for user in range(len(dataset.users)):
        sequence = dataset.training_sequence(user).tolist()
        for position in range(1, len(sequence)):
            for item in set(sequence[max(0, position - max_history) : position]):
                found[item].append((user, position))
    return found


def test_examples_with_an_item_are_those_in_whose_history_it_stands():
    dataset = make_renderer(True).dataset
    for max_history in (1, 3, 20):
        found = [list(map(tuple, of_item.tolist())) for of_item in examples_with_items(dataset, max_history)]
        assert found == [sorted(of_item) for of_item in brute_force_examples(dataset, max_history)]


def loss_of_one(renderer, user, position, item, tokens):
    """The negative log-probability of one target, an item's ID replaced by `tokens` in the history."""
    history = renderer.dataset.sequences[user][:position].tolist()
    spelled = [tokens if other == item else renderer.item_ids[other] for other in history]
    return loss_of_spelled(renderer, user, position, spelled)


@jax.jit
def _logits(params, tokens, mask, seen, written):
    model = nnx.merge(GRAPHDEF, params)
    return model.decode(written, model.encode(tokens, seen), mask)[0] @ model.output_table.T


def loss_of_spelled(renderer, user, position, spelled, template=0):
    """The negative log-probability of one target after a history of these IDs, alone in its batch."""
    target = int(renderer.dataset.sequences[user][position])
    ids, room = spelled[-renderer.max_history :], renderer.max_prompt_length
    prompt, numbers = renderer.templates[template].render_numbered(ids, renderer.user_ids[user], room)
    numbers = np.asarray(numbers)
    seen = numbers[None, :] <= numbers[:, None] if renderer.is_causal else np.ones((len(prompt),) * 2, bool)
    decoded = renderer.decoded(target, template)
    if not decoded:
        return 0.0
    missing = _WIDTH - len(prompt)
    tokens = np.pad(prompt, (0, missing))[None]
    mask = np.pad(np.ones(len(prompt), bool), (0, missing))[None]
    # Padding sees all, and is seen by none.
    seen = np.pad(np.pad(seen, ((0, missing), (0, 0)), constant_values=True), ((0, 0), (0, missing)))[None]
    written = np.pad([0, *decoded[:-1]], (0, _LENGTH - len(decoded)))[None]
    logits = np.asarray(_logits(PARAMS, tokens, mask, seen, written))
    total = 0.0
    for place, (token, allowed) in enumerate(zip(decoded, may_follow(renderer, target, template), strict=True)):
        total -= logits[place, token] - jax.nn.logsumexp(logits[place, allowed])
    return float(total)


@pytest.mark.parametrize("is_causal", [True, False])
def test_candidates_are_scored_on_the_same_examples_as_one_prompt_at_a_time(is_causal):
    renderer = make_renderer(is_causal)
    candidates = [[Candidate(str(item), tokens)] for item, tokens in enumerate(ITEM_IDS)]
    candidates[2] += [Candidate("a", (80, 81)), Candidate("b", (60,))]
    candidates[7] += [Candidate("c", (82, 83, 84, 85, 86, 87))]
    scorer = CandidateScorer(GRAPHDEF, batch_size=8)
    choices = jax.tree.map(jnp.asarray, choice_table(renderer.choices))
    scored = scorer.score(PARAMS, renderer, choices, candidates, num_examples=3, seed=[0, 1])
    examples = brute_force_examples(renderer.dataset, renderer.max_history)
    assert all(len(of_item.losses) == 0 for item, of_item in enumerate(scored) if item not in (2, 7))
    for item in (2, 7):
        each = {
            example: [loss_of_one(renderer, *example, item, candidate.tokens) for candidate in candidates[item]]
            for example in examples[item]
        }
        # Which of the examples were drawn is seen from the old ID's mean; the others must have the same.
        means = [
            np.mean([each[example] for example in chosen], axis=0)
            for chosen in itertools.combinations(sorted(each), min(3, len(each)))
        ]
        fitting = [mean for mean in means if abs(mean[0] - scored[item].losses[0]) < 1e-4]
        assert any(np.allclose(mean, scored[item].losses, atol=1e-4) for mean in fitting)
        assert len(set(np.round(scored[item].losses, 5))) == len(candidates[item])


def test_what_is_scored_follows_from_the_seed_alone():
    renderer = make_renderer(True)
    candidates = [[Candidate(str(item), tokens), Candidate("x", (90,))] for item, tokens in enumerate(ITEM_IDS)]
    choices = jax.tree.map(jnp.asarray, choice_table(renderer.choices))
    runs = [
        CandidateScorer(GRAPHDEF, batch_size=size).score(
            PARAMS, renderer, choices, candidates, num_examples=2, seed=[seed]
        )
        for seed, size in ((0, 8), (0, 5), (1, 8))
    ]
    for one, same in zip(runs[0], runs[1], strict=True):
        np.testing.assert_allclose(one.losses, same.losses, rtol=1e-5)
    assert any(not np.allclose(one.losses, other.losses) for one, other in zip(runs[0], runs[2], strict=True))


TOKENS = st.lists(st.integers(2, 5), min_size=1, max_size=2).map(tuple)


@st.composite
def scored_catalogues(draw):
    """An old table of distinct IDs, and candidates with losses, many of them the IDs of other items."""
    old = draw(st.lists(TOKENS, min_size=1, max_size=8, unique=True))
    scored = []
    for tokens in old:
        others = [other for other in draw(st.lists(TOKENS, max_size=4, unique=True)) if other != tokens]
        candidates = tuple(Candidate(" ".join(map(str, each)), each) for each in [tokens, *others])
        losses = draw(st.lists(st.floats(0, 3), min_size=len(candidates), max_size=len(candidates)))
        scored.append(Scored(candidates, np.asarray(losses if draw(st.booleans()) else [])))
    texts = tuple(" ".join(map(str, tokens)) for tokens in old)
    return IdTable(tuple(f"item{index}" for index in range(len(old))), texts, tuple(old)), scored


@settings(max_examples=200, deadline=None)
@given(scored_catalogues())
def test_accepted_ids_are_unique_never_worse_and_the_old_ones_unless_beaten(catalogue):
    old, scored = catalogue
    table = accepted_table(old, scored)
    assert len(set(table.tokens)) == len(old.tokens) and table.items == old.items
    taken = []
    for item, (tokens, (candidates, losses)) in enumerate(zip(table.tokens, scored, strict=True)):
        free = [
            place
            for place, candidate in enumerate(candidates)
            if candidate.tokens not in (set(old.tokens) - {old.tokens[item]}) | set(taken)
        ]
        if not len(losses):
            assert tokens == old.tokens[item]
        else:
            found = next(place for place, candidate in enumerate(candidates) if candidate.tokens == tokens)
            assert losses[found] == min(losses[place] for place in free)
            assert found == 0 or losses[found] < losses[0]
        taken.append(tokens)


def test_candidates_are_the_old_id_and_what_else_was_written_of_a_valid_length():
    texts = ("red kettle", "blue jug")
    old = IdTable(("a", "b"), texts, tuple(map(tuple, TOKENIZER.encode_batch(list(texts)))))
    long = " ".join(["kettle"] * 200)
    written = [["red kettle", "kettle red", "kettle red", long], ["red kettle"]]
    found = with_old_ids(old, written, TOKENIZER)
    assert [[candidate.text for candidate in of_item] for of_item in found] == [
        ["red kettle", "kettle red"], ["blue jug", "red kettle"]
    ]  # fmt: skip
    assert all(tuple(TOKENIZER.encode(one.text)) == one.tokens for of_item in found for one in of_item)
