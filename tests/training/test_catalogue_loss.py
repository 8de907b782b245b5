"""Both losses on packed rows against each target with a prompt of its own, and a softmax over what may follow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from idgenrec_jax.data.choices import place_choices
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.held_out_batches import pad_rows
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.recommender_batches import recommender_epoch, training_shape
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.models.t5 import T5, T5Config, shift_right
from idgenrec_jax.training.catalogue_loss import catalogue_loss, held_out_losses
from idgenrec_jax.training.choice_softmax import choice_table
from idgenrec_jax.training.id_loss import loss_of_soft_ids
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.segments import causal_mask, decode_targets, encode_prompts
from idgenrec_jax.training.steps import create_train_state, make_supervised_step, seed_key
from tests.data.test_prefix_tree import children_of
from tests.data.test_recommender_batches import TEMPLATES

TOKENIZER = sample_tokenizer()
VOCABULARY, NUM_ITEMS, NUM_USERS = 1408, 14, 9
# Several begin others.
ITEM_IDS = (
    (60,), (60, 61), (60, 61, 62), (60, 63), (64, 65, 66, 67), (64, 65, 68), (69, 70), (69, 71), (72,), (72, 60, 73),
    (72, 60, 74), (75, 76, 77), (78, 61), (79,),
)  # fmt: skip
MODEL = T5Config(
    vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=1, num_heads=2,
    tie_word_embeddings=False, dropout_rate=0.2,
)  # fmt: skip
GRAPHDEF, PARAMS = nnx.split(T5(MODEL, rngs=nnx.Rngs(0)), nnx.Param)
# What one target and its own prompt are padded to, and how many of them.
SOURCE, TARGET, COUNT = 56, 8, 40


def make_renderer(is_causal):
    rng = np.random.default_rng(0)
    sequences = tuple(rng.integers(0, NUM_ITEMS, 4 + 2 * user % 9).astype(np.int32) for user in range(NUM_USERS))
    names, items = tuple(map(str, range(NUM_USERS))), tuple(map(str, range(NUM_ITEMS)))
    return PromptRenderer(
        dataset=Dataset("shop", names, items, items, sequences),
        templates=tuple(PromptTokens(template, TOKENIZER, "shop") for template in TEMPLATES),
        item_ids=ITEM_IDS,
        # As read_user of the batches' tests wants it, but for the vocabulary.
        user_ids=tuple((30 + user,) for user in range(NUM_USERS)),
        eos_id=TOKENIZER.eos_id,
        max_history=5,
        max_prompt_length=256,
        over_catalogue=True,
        is_causal=is_causal,
    )


def may_follow(renderer, item, template):
    """For each token of what is decoded of a target: all tokens that may stand there."""
    targets = [renderer.target(other, template)[:-1] for other in range(NUM_ITEMS)]
    following = {
        prefix: [TOKENIZER.eos_id if isinstance(state, int) else token for token, state in children.items()]
        for prefix, children in children_of(targets).items()
    }
    decoded = renderer.decoded(item, template)
    return [following[tuple(decoded[:place])] for place in range(len(decoded))]


def own_prompts(renderer, examples, is_causal):
    """Each example (user, history, item, template) in a row of its own, as the arrays of `losses_of_each`."""
    prompts, numbers, targets, allowed = [], [], [], np.zeros((COUNT, TARGET, VOCABULARY), bool)
    for row, (user, history, item, template) in enumerate(examples):
        tokens, of_tokens = renderer.numbered_prompt(user, np.asarray(history), template)
        prompts.append(tokens)
        numbers.append(of_tokens if is_causal else [0] * len(tokens))
        targets.append(renderer.decoded(item, template))
        for place, tokens in enumerate(may_follow(renderer, item, template)):
            allowed[row, place, tokens] = True
    arrays = *pad_rows(prompts, COUNT, SOURCE), pad_rows(numbers, COUNT, SOURCE)[0], *pad_rows(targets, COUNT, TARGET)
    return jax.tree.map(jnp.asarray, (*arrays, allowed))


def losses_of_each(params, prompts, prompt_mask, numbers, targets, target_mask, allowed):
    """The negative log-probability of each row's target over what may follow, and over the vocabulary: [rows] each."""
    model = nnx.merge(GRAPHDEF, params)
    seen = prompt_mask[:, None, :] & (numbers[:, None, :] <= numbers[:, :, None])
    hidden = model.decode(shift_right(targets, 0), model.encode(prompts, seen), prompt_mask)
    logits = hidden @ model.output_table.T
    found = []
    for of_tokens in (jnp.where(allowed | ~target_mask[..., None], logits, -1e9), logits):
        own = jnp.take_along_axis(jax.nn.log_softmax(of_tokens), targets[..., None], axis=-1)[..., 0]
        found.append(-jnp.where(target_mask, own, 0.0).sum(axis=1))
    return found, hidden


@jax.jit
def with_gradients(params, *arrays):
    """Both mean losses (per target and per token), their gradients, the losses of each row and the hidden states."""

    def means(params):
        (over_catalogue, over_vocabulary), hidden = losses_of_each(params, *arrays)
        count, tokens = arrays[4].any(axis=1).sum(), arrays[4].sum()
        return (over_catalogue.sum() / count, over_vocabulary.sum() / tokens), (over_catalogue, hidden)

    losses, pull, aside = jax.vjp(means, params, has_aux=True)
    return losses, [pull((jnp.float32(first), jnp.float32(1 - first)))[0] for first in (1, 0)], aside


def losses_of_rows(params, batch, table):
    model = nnx.merge(GRAPHDEF, params)
    return catalogue_loss(model, batch, choices=table), recommender_loss(model, batch)


@jax.jit
def of_rows(params, batch, table):
    """Both losses of a packed batch, and their gradients where its histories are causal."""
    if batch.order is None:
        # Those of whole histories are tested in test_id_loss.py.
        return losses_of_rows(params, batch, table), None
    values, pull = jax.vjp(lambda params: losses_of_rows(params, batch, table), params)
    return values, [pull((jnp.float32(first), jnp.float32(1 - first)))[0] for first in (1, 0)]


@jax.jit
def states_of_rows(params, batch):
    """The hidden states that predict the targets of a packed batch."""
    model = nnx.merge(GRAPHDEF, params)
    return decode_targets(model, encode_prompts(model, batch), batch)


def table_of(renderer):
    return jax.tree.map(jnp.asarray, choice_table(renderer.choices))


def training_batch(is_causal):
    """The first batch of an epoch, and (user, history, item, template) of its targets in order."""
    renderer = make_renderer(is_causal)
    shared = {"seed": 0, "batch_size": 24}
    shape = training_shape(renderer, row_multiple=2, **shared)
    batches = recommender_epoch(renderer, epoch=0, num_examples=0, shape=shape, **shared)
    examples = [(user, history.tolist(), item, template) for user, history, item, template in batches.targets(0)]
    return renderer, jax.tree.map(jnp.asarray, batches.batch(0)), examples


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "whole"])
def packed(request):
    """A packed batch with causal or whole histories, its examples, its losses, gradients and states."""
    renderer, batch, examples = training_batch(request.param)
    assert max(row.max() for row in np.asarray(batch.target_segments)) > 1, "some rows must be shared"
    return renderer, batch, examples, (*of_rows(PARAMS, batch, table_of(renderer)), states_of_rows(PARAMS, batch))


def assert_near(found, expected):
    """Every array within a relative norm of 1e-5."""
    for value, reference in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(value - reference) <= 1e-5 * np.linalg.norm(reference)


def test_every_target_of_a_packed_row_has_what_its_own_prompt_gives_it(packed):
    renderer, batch, examples, (losses, gradients, hidden) = packed
    arrays = own_prompts(renderer, examples, renderer.is_causal)
    expected, expected_gradients, (_, expected_hidden) = with_gradients(PARAMS, *arrays)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    if renderer.is_causal:
        assert_near(gradients, expected_gradients)
    # Target by target, in the order of the rows; both losses follow from these states.
    real = np.asarray(batch.target_segments) > 0
    assert_near(np.asarray(hidden)[real], np.asarray(expected_hidden)[np.asarray(arrays[4])])


def test_the_two_ways_to_read_a_history_differ(packed):
    renderer, _, examples, (losses, *_) = packed
    other, *_ = with_gradients(PARAMS, *own_prompts(renderer, examples, not renderer.is_causal))
    assert abs(losses[0] - other[0]) > 1e-4 and abs(losses[1] - other[1]) > 1e-4


@pytest.mark.parametrize("packed", [True], indirect=True, ids=["causal"])
def test_a_target_has_the_same_states_to_the_bit_whatever_comes_later_in_its_window(packed):
    _, batch, _, (*_, hidden) = packed
    order, rng = batch.order, np.random.default_rng(1)
    number = 3
    later = np.asarray((order.numbers > number) & (batch.prompt_segments > 0))
    later_targets = np.asarray((order.target_numbers > number) & (batch.target_segments > 0))
    assert later.any() and later_targets.any()
    changed = batch._replace(
        prompt_tokens=jnp.where(later, rng.integers(2, VOCABULARY, later.shape), batch.prompt_tokens),
        target_tokens=jnp.where(later_targets, rng.integers(2, VOCABULARY, later_targets.shape), batch.target_tokens),
    )
    changed = jax.tree.map(lambda new, old: new.astype(old.dtype), changed, batch)
    other = states_of_rows(PARAMS, changed)
    earlier = np.asarray((order.target_numbers <= number) & (batch.target_segments > 0))
    assert earlier.sum() > 20
    np.testing.assert_array_equal(np.asarray(hidden)[earlier], np.asarray(other)[earlier])
    assert (np.asarray(hidden)[later_targets] != np.asarray(other)[later_targets]).any(axis=-1).mean() > 0.9


def test_the_probabilities_of_all_items_given_a_prompt_sum_to_one():
    renderer = make_renderer(is_causal=True)
    table = table_of(renderer)

    @jax.jit
    def losses(prompts, mask, numbers, targets, places):
        model = nnx.merge(GRAPHDEF, PARAMS)
        encoded = model.encode(prompts, causal_mask(mask[:, None, :] & mask[:, :, None], numbers))
        return held_out_losses(model, encoded, mask, targets, places, table)

    room = renderer.most_choices
    for template in range(3):
        examples = [(2, [3, 1, 4, 1, 5], item, template) for item in range(NUM_ITEMS)]
        prompts, mask, numbers, targets, target_mask, _ = arrays = own_prompts(renderer, examples, True)
        ways = [[(0, renderer.way(item, template))] for item in range(NUM_ITEMS)]
        places = jax.tree.map(jnp.asarray, place_choices(renderer.choices, ways, COUNT, room))
        found = losses(prompts, mask, numbers, targets, places)
        assert np.exp(-np.asarray(found, np.float64))[:NUM_ITEMS].sum() == pytest.approx(1.0, abs=1e-5)
        _, _, (expected, _) = with_gradients(PARAMS, *arrays)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


ID_LENGTH = 4


def id_batch(is_causal):
    """A batch of the ID phase, its examples, and the tokens of the IDs in its places, as they are and as a mask."""
    renderer = make_renderer(is_causal)
    texts = [[100 + item, TOKENIZER.eos_id] for item in range(NUM_ITEMS)]
    shared = {"seed": 0, "id_length": ID_LENGTH}
    shape = id_shape(renderer, texts, batch_size=12, items_per_batch=14, row_multiple=2, **shared)
    batches = IdBatches(renderer, texts, epoch=0, num_examples=0, shape=shape, **shared)
    batch = batches.batch(0)
    examples = []
    for user, position, template in batches.examples(0):
        sequence = renderer.dataset.sequences[user]
        history = sequence[:position][-5:].tolist()
        examples.append((user, history, int(sequence[position]), template))
    ids = []
    for tokens, segments, places in zip(batch.item_tokens, batch.item_segments, batch.item_places, strict=True):
        first = {int(segment): int(token) for token, segment in zip(tokens[::-1], segments[::-1], strict=True)}
        ids += [ITEM_IDS[first[place] - 100] if place else () for place in places.tolist()]
    return renderer, jax.tree.map(jnp.asarray, batch), examples, pad_rows(ids, len(ids), ID_LENGTH)


@pytest.mark.parametrize("is_causal", [True, False])
def test_hard_ids_in_the_id_phase_give_the_loss_of_the_prompts_with_these_ids(is_causal):
    renderer, batch, examples, (tokens, mask) = id_batch(is_causal)
    assert max(row.max() for row in np.asarray(batch.target_segments)) > 1, "some rows must be shared"
    assert (batch.prompt_items is not None) == is_causal
    table = table_of(renderer)

    @partial(jax.jit, static_argnums=1)
    def both(embeddings, chunks):
        recommender = nnx.merge(GRAPHDEF, PARAMS)
        return [
            loss_of_soft_ids(recommender, embeddings, jnp.asarray(mask), batch, choices=choices, chunks=chunks)
            for choices in (table, None)
        ]

    embeddings = PARAMS["shared"]["table"][...][tokens]
    expected, *_ = with_gradients(PARAMS, *own_prompts(renderer, examples, is_causal))
    # One part and two: with what a catalogue and a causal history add to a batch.
    for chunks in (1, 2) if is_causal else (1,):
        np.testing.assert_allclose(both(embeddings, chunks), expected, rtol=1e-5)


def test_a_causal_step_over_the_catalogue_is_the_same_in_parts():
    renderer, batch, _ = training_batch(is_causal=True)
    assert all((batch.target_segments[row] > 0).any() for row in range(2)), "each part has targets"
    assert len(batch.prompt_tokens) == 2
    optimizer, table = make_optimizer(clip_norm=0.0), table_of(renderer)
    step = make_supervised_step(GRAPHDEF, optimizer, loss=catalogue_loss, accumulation=2, dropout=False)
    state = create_train_state(jax.tree.map(jnp.copy, PARAMS), optimizer)
    state, metrics = step(state, batch, np.float32(0.01), seed_key(3), table)
    (loss, _), (gradients, _) = of_rows(PARAMS, batch, table)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.global_norm(gradients), rtol=1e-5)
    assert_near(state.optimizer_state[1].mu, jax.tree.map(lambda gradient: 0.1 * gradient, gradients))
