"""The recommender's loss and the ID loss, against direct computations one example at a time and without padding."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import PackedBatches, one_example_a_row, plan_shape
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.id_loss import generate_soft_ids, id_loss, loss_of_soft_ids
from idgenrec_jax.training.recommender_loss import recommender_loss, token_cross_entropy
from idgenrec_jax.training.soft_ids import carries_embedding, greedy_ids, place_ids, tokens_without_embedding

VOCABULARY, ID_LENGTH, PAD, EOS = 64, 4, 0, 1
SLOT = "slot"

ITEM_TEXTS = ([5, 9, 13, 2, 1], [40, 41, 1], [23, 7, 55, 1], [31, 60, 12, 33, 8, 1])
# Prompts as lists of tokens and (SLOT, item); item 1 is in two histories, item 3 twice in one.
EXAMPLES = (
    ([10, 11, (SLOT, 0), 12, (SLOT, 1), 13, 1], [20, 21, 1]),
    ([10, (SLOT, 1), 12, (SLOT, 2), 1], [22, 1]),
    ([14, (SLOT, 3), 12, (SLOT, 3), 12, (SLOT, 0), 15, 16, 1], [23, 24, 25, 1]),
)


def make_model(seed, *, tied=True, eos=EOS):
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2,
        feed_forward="relu" if tied else "gated-gelu", tie_word_embeddings=tied, eos_token_id=eos,
    )  # fmt: skip
    return T5(config, rngs=nnx.Rngs(seed))


def padded(rows, width, fill=PAD):
    return np.array([list(row) + [fill] * (width - len(row)) for row in rows], np.int32)


def lengths_mask(rows, width):
    return np.arange(width) < np.array([len(row) for row in rows])[:, None]


def recommender_batch(prompts, targets, source=None, target=None):
    source = source or max(map(len, prompts))
    target = target or max(map(len, targets))
    return jax.tree.map(jnp.asarray, one_example_a_row(prompts, targets, source=source, target=target))


def id_batch(examples=EXAMPLES, texts=ITEM_TEXTS, *, rows=None, item_rows=None, source=0, text=0):
    """The batch of `examples`: `rows` lists those of each row, `item_rows` the items; None: one a row.

    A free place stands before the second item of a row. Rows have `source` and `text` more positions than needed.
    """
    rows = rows or [[example] for example in range(len(examples))]
    item_rows = item_rows or [[item] for item in range(len(texts))]
    width = max(map(len, item_rows)) + (max(map(len, item_rows)) > 1)
    item_places = np.zeros((len(item_rows), width), np.int32)
    place = {}
    for row, items in enumerate(item_rows):
        for index, item in enumerate(items):
            column = index + (index > 0)
            item_places[row, column] = index + 1
            place[item] = row * width + column
    columns = []
    for prompt, _ in examples:
        columns.append([])
        for part in prompt:
            if isinstance(part, tuple):
                columns[-1] += [(PAD, place[part[1]], position) for position in range(ID_LENGTH)]
            else:
                columns[-1].append((part, -1, 0))
    tokens, slot_items, slot_positions = (
        [[values[index] for values in prompt] for prompt in columns] for index in range(3)
    )

    def packed(sequences, plan, extra=0, fill=PAD):
        width = max(sum(len(sequences[index]) for index in row) for row in plan) + extra
        values = [[value for index in row for value in sequences[index]] for row in plan]
        numbers = [[number for number, index in enumerate(row, 1) for _ in sequences[index]] for row in plan]
        return jnp.asarray(padded(values, width, fill)), jnp.asarray(padded(numbers, width))

    return IdBatch(
        *packed(texts, item_rows, text),
        jnp.asarray(item_places),
        *packed(tokens, rows, source),
        packed(slot_items, rows, source, fill=-1)[0],
        packed(slot_positions, rows, source)[0],
        *packed([target for _, target in examples], rows),
    )


# Padding in every place where a batch may have it, and shared rows; the direct computations have neither.
PACKED_BATCH = id_batch(rows=[[1, 0], [], [2]], item_rows=[[3], [2, 0, 1], []], source=3, text=4)


def dropout_key(seed):
    """A key of the kind whose random bits compile fastest."""
    return jax.random.key(seed, impl="rbg")


@nnx.jit
def jitted_recommender_loss(model, batch, dropout_key=None):
    return recommender_loss(model, batch, dropout_key)


def direct_target_loss(recommender, encoded, source_length, target):
    """Summed negative log-likelihood of one target, from log_softmax."""
    inputs = jnp.asarray([[PAD, *target[:-1]]])
    hidden = recommender.decode(inputs, encoded, jnp.ones((1, source_length), bool))
    log_probabilities = jax.nn.log_softmax(hidden[0] @ recommender.output_table.T)
    return -sum(log_probabilities[index, token] for index, token in enumerate(target))


def direct_recommender_loss(recommender, prompts, targets):
    total = 0.0
    for prompt, target in zip(prompts, targets, strict=True):
        encoded = recommender.encode(jnp.asarray([prompt]), jnp.ones((1, len(prompt)), bool))
        total = total + direct_target_loss(recommender, encoded, len(prompt), target)
    return total / sum(map(len, targets))


def direct_greedy(id_generator, text):
    """ID_LENGTH greedy tokens of one item, each from a full pass over those before it; EOS does not stop it."""
    mask = jnp.ones((1, len(text)), bool)

    @jax.jit
    def hidden_states(inputs):
        encoded = id_generator.encode(jnp.asarray([text]), mask)
        return id_generator.decode(inputs, encoded, mask) @ id_generator.output_table.T

    inputs = np.zeros((1, ID_LENGTH + 1), np.int32)
    for position in range(ID_LENGTH):
        inputs[0, position + 1] = hidden_states(jnp.asarray(inputs))[0, position].argmax()
    return inputs[0, 1:].tolist()


def direct_kept(tokens, eos, punctuation):
    """The positions of an ID before its EOS whose tokens are not punctuation."""
    before_eos = tokens.index(eos) if eos in tokens else len(tokens)
    return [position for position in range(before_eos) if tokens[position] not in (*punctuation, PAD)]


def direct_id_loss(id_generator, recommender, greedy, kept):
    """The ID loss with dense softmaxes and Python lists: one item, then one prompt, at a time; no padding anywhere."""
    soft_ids = []
    for text, tokens, positions in zip(ITEM_TEXTS, greedy, kept, strict=True):
        mask = jnp.ones((1, len(text)), bool)
        encoded = id_generator.encode(jnp.asarray([text]), mask)
        hidden = id_generator.decode(jnp.asarray([[PAD, *tokens[:-1]]]), encoded, mask)
        probabilities = jax.nn.softmax(hidden[0] @ id_generator.output_table.T)
        soft = probabilities @ recommender.shared.table[...]
        soft_ids.append([soft[position] for position in positions])
    total = 0.0
    for prompt, target in EXAMPLES:
        vectors = []
        for part in prompt:
            vectors += soft_ids[part[1]] if isinstance(part, tuple) else [recommender.shared.table[...][part]]
        mask = jnp.ones((1, len(vectors)), bool)
        encoded = recommender.encode(None, mask, embeddings=jnp.stack(vectors)[None])
        total = total + direct_target_loss(recommender, encoded, len(vectors), target)
    return total / sum(len(target) for _, target in EXAMPLES)


def make_id_generator(tied, eos=EOS):
    """A generator whose items get different IDs; `eos` changes when they end and nothing else."""
    id_generator = make_model(2 if tied else 6, tied=tied, eos=eos)
    if tied:
        # A random tied T5 repeats its start token, whose embedding dominates: make the embeddings small.
        id_generator.shared.table[...] *= 0.2
        id_generator.decoder.final_norm.scale[...] *= 20.0
    return id_generator


class Case(NamedTuple):
    id_generator: T5
    recommender: T5
    tokens: list
    kept: list
    no_embedding: jax.Array
    id_loss: Callable
    loss: jax.Array
    gradients: tuple


def with_gradients(loss, id_generator, recommender):
    """Jit `loss(generator, recommender, *rest)` as a function of the parameters; gradients are those of both models."""
    generator_graph, recommender_graph = nnx.graphdef(id_generator), nnx.graphdef(recommender)

    def loss_of(generator_params, recommender_params, *rest):
        models = nnx.merge(generator_graph, generator_params), nnx.merge(recommender_graph, recommender_params)
        return loss(*models, *rest)

    return jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))


def params_of(model):
    return nnx.state(model, nnx.Param)


def assert_same_gradients(gradients, expected, tolerance=1e-4):
    """Compare every parameter's gradient by the norm of the difference relative to the norm."""
    expected = jax.tree_util.tree_leaves_with_path(expected)
    for gradient, (path, reference) in zip(jax.tree.leaves(gradients), expected, strict=True):
        error = np.linalg.norm(gradient - reference) / max(np.linalg.norm(reference), 1e-12)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"


def hard_prompts(case):
    """The examples' prompts as token lists, with the greedy IDs spelled out."""
    words = [[tokens[position] for position in kept] for tokens, kept in zip(case.tokens, case.kept, strict=True)]
    prompts = []
    for prompt, _ in EXAMPLES:
        prompts.append([])
        for part in prompt:
            prompts[-1] += words[part[1]] if isinstance(part, tuple) else [part]
    return prompts


@pytest.fixture(scope="module", params=["tied", "untied"])
def case(request):
    """Models of one variant, with EOS and punctuation chosen among the greedy tokens to make the IDs below."""
    tied = request.param == "tied"
    greedy = [direct_greedy(make_id_generator(tied), text) for text in ITEM_TEXTS]
    eos, punctuation = (34, 48) if tied else (20, 17)
    kept = [direct_kept(tokens, eos, (punctuation,)) for tokens in greedy]
    # An empty ID, one or two that EOS ends early, punctuation between words, and full length without EOS.
    assert kept == ([[0, 1], [], [0, 1, 3], [0, 1, 2, 3]] if tied else [[], [0, 1], [0, 1, 2], [0, 2, 3]])
    no_embedding = jnp.zeros(VOCABULARY, bool).at[punctuation].set(True)

    def loss(id_generator, recommender, batch):
        # A block that does not divide the vocabulary.
        return id_loss(id_generator, recommender, batch, no_embedding, id_length=ID_LENGTH, block_size=24)

    id_generator, recommender = make_id_generator(tied, eos), make_model(3, tied=tied)
    jitted = with_gradients(loss, id_generator, recommender)
    result = jitted(params_of(id_generator), params_of(recommender), PACKED_BATCH)
    return Case(id_generator, recommender, greedy, kept, no_embedding, jitted, *result)


@pytest.mark.slow
def test_id_loss_of_a_packed_batch_equals_the_direct_computation_in_value_and_gradients(case):
    def direct(id_generator, recommender):
        return direct_id_loss(id_generator, recommender, case.tokens, case.kept)

    models = case.id_generator, case.recommender
    expected, (generator_gradients, _) = with_gradients(direct, *models)(*map(params_of, models))
    np.testing.assert_allclose(case.loss, expected, rtol=1e-5)
    assert_same_gradients(case.gradients[0], generator_gradients)


def with_other_padding(batch, token):
    """The batch with this token in every place where a batch has none, as another tokenizer may have for padding."""
    others = {
        f"{name}_tokens": jnp.where(getattr(batch, f"{name}_segments") == 0, token, getattr(batch, f"{name}_tokens"))
        for name in ("prompt", "target", "item")
        if hasattr(batch, f"{name}_tokens")
    }
    assert all((getattr(batch, name) != tokens).any() for name, tokens in others.items())
    return batch._replace(**others)


def test_any_token_may_stand_for_padding_in_an_id_batch(case):
    models = params_of(case.id_generator), params_of(case.recommender)
    loss, gradients = case.id_loss(*models, with_other_padding(PACKED_BATCH, 9))
    assert loss == case.loss
    jax.tree.map(np.testing.assert_array_equal, gradients, case.gradients)


def test_id_loss_moves_every_generator_parameter_and_no_recommender_parameter(case):
    generator_gradients, recommender_gradients = case.gradients
    for path, gradient in jax.tree_util.tree_leaves_with_path(generator_gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)
    for path, gradient in jax.tree_util.tree_leaves_with_path(recommender_gradients):
        assert not np.any(gradient), jax.tree_util.keystr(path)


def test_a_step_against_the_gradient_lowers_the_id_loss(case):
    rate = 0.005 / np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(case.gradients[0])))
    params = jax.tree.map(lambda value, slope: value - rate * slope, params_of(case.id_generator), case.gradients[0])
    after, _ = case.id_loss(params, params_of(case.recommender), PACKED_BATCH)
    assert after < case.loss


def test_hard_logits_give_the_loss_of_the_discrete_prompt(case):
    certain = jax.tree.map(jnp.copy, params_of(case.id_generator))
    certain["decoder"]["final_norm"]["scale"][...] *= 1e5
    loss, _ = case.id_loss(certain, params_of(case.recommender), PACKED_BATCH)
    discrete = recommender_batch(hard_prompts(case), [target for _, target in EXAMPLES])
    np.testing.assert_allclose(loss, jitted_recommender_loss(case.recommender, discrete), rtol=1e-5)
    assert abs(loss - case.loss) > 1e-3, "the soft prompt must differ, or this test would show nothing"


ID_TOKENS = {
    "empty": [61, 5, 6, 7],
    "ended": [5, 6, 61, 7],
    "full": [5, 6, 7, 8],
    "gap": [5, 49, 49, 6],
    "pads": [0, 5, 0, 6],
    "punctuation only": [49, 49, 61, 0],
}
ID_WORDS = {"empty": [], "ended": [5, 6], "full": [5, 6, 7, 8], "gap": [5, 6], "pads": [5, 6], "punctuation only": []}


def masked_ids(names):
    tokens = jnp.asarray([ID_TOKENS[name] for name in names])
    no_embedding = jnp.zeros(VOCABULARY, bool).at[49].set(True)
    return tokens, carries_embedding(tokens, no_embedding, eos_token_id=61, pad_token_id=0)


def test_eos_padding_and_punctuation_carry_no_embedding():
    tokens, mask = masked_ids(ID_TOKENS)
    for row, kept, words in zip(np.asarray(tokens), np.asarray(mask), ID_WORDS.values(), strict=True):
        assert row[kept].tolist() == words


# Every kind of ID first, in the middle and last in a history.
@pytest.mark.parametrize("names", [("empty", "ended", "full", "gap"), ("punctuation only", "gap", "empty", "pads")])
def test_given_hard_embeddings_the_loss_is_that_of_the_discrete_prompt(names):
    recommender = make_model(3)
    tokens, mask = masked_ids(names)
    loss = nnx.jit(loss_of_soft_ids)(recommender, recommender.embed(tokens), mask, id_batch())
    prompts = []
    for prompt, _ in EXAMPLES:
        prompts.append([])
        for part in prompt:
            prompts[-1] += ID_WORDS[names[part[1]]] if isinstance(part, tuple) else [part]
    discrete = recommender_batch(prompts, [target for _, target in EXAMPLES])
    np.testing.assert_allclose(loss, jitted_recommender_loss(recommender, discrete), rtol=1e-5)


def test_punctuation_and_nothing_else_has_no_embedding():
    tokenizer = sample_tokenizer()
    marks = tokens_without_embedding(tokenizer.punctuation_ids, tokenizer.size + 7)
    assert marks.shape == (tokenizer.size + 7,)
    assert set(np.flatnonzero(marks).tolist()) == set(tokenizer.punctuation_ids)
    assert marks.any() and not marks[tokenizer.encode("red keyboard")].any()


def test_masked_slots_close_up_and_the_kept_positions_stay_in_order():
    recommender = make_model(3)
    vectors = jnp.arange(2 * 3 * 16, dtype=jnp.float32).reshape(2, 3, 16)
    placed, segments, items = place_ids(
        recommender,
        vectors,
        mask=jnp.asarray([[True, False, True], [False, False, False]]),
        prompt_tokens=jnp.asarray([[7, 0, 0, 0, 8, 0, 0, 0, 9, 0]]),
        prompt_segments=jnp.asarray([[1] * 5 + [2] * 4 + [0]]),
        slot_item=jnp.asarray([[-1, 0, 0, 0, -1, 1, 1, 1, -1, -1]]),
        slot_position=jnp.asarray([[0, 0, 1, 2, 0, 0, 1, 2, 0, 0]]),
        prompt_items=jnp.asarray([[0, 1, 1, 1, 2, 1, 1, 1, 3, 0]]),
    )
    assert items[0, :5].tolist() == [0, 1, 1, 2, 3]
    assert segments.tolist() == [[1] * 4 + [2] + [0] * 5]
    table = recommender.shared.table[...]
    expected = jnp.stack([table[7], vectors[0, 0], vectors[0, 2], table[8], table[9]])
    np.testing.assert_array_equal(placed[0, :5], expected)


@pytest.mark.slow
def test_greedy_ids_stay_deterministic_under_dropout_and_the_soft_ids_do_not():
    id_generator, table = make_id_generator(tied=True, eos=34), make_model(3).shared.table[...]
    batch = id_batch()

    @jax.jit
    def soft_ids(key):
        no_embedding = jnp.zeros(VOCABULARY, bool)
        return generate_soft_ids(
            id_generator, table, batch.item_tokens, batch.item_segments, batch.item_places, no_embedding,
            id_length=ID_LENGTH, dropout_key=key,
        )  # fmt: skip

    plain = soft_ids(None)
    first, again, other = (soft_ids(dropout_key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(plain.tokens, first.tokens)
    np.testing.assert_array_equal(plain.tokens, other.tokens)
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert np.abs(first.embeddings - plain.embeddings).max() > 0.01
    assert np.abs(first.embeddings - other.embeddings).max() > 0.01


@pytest.mark.parametrize("items", [[[0], [1], [2], [3]], [[3], [2, 0, 1]]], ids=["an item a row", "packed"])
def test_greedy_ids_are_those_of_repeated_full_passes(case, items):
    batch = id_batch(item_rows=items)
    segments, places = batch.item_segments, batch.item_places

    @nnx.jit
    def written(id_generator):
        own = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
        of_place = (places[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
        return greedy_ids(id_generator, id_generator.encode(batch.item_tokens, own), of_place, id_length=ID_LENGTH)

    eos = case.id_generator.config.eos_token_id
    rows = np.asarray(written(case.id_generator))[np.asarray(places).reshape(-1) > 0].tolist()
    for row, item in zip(rows, sum(items, []), strict=True):
        tokens = case.tokens[item]
        end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        assert row == tokens[:end] + [PAD] * (ID_LENGTH - end)


def test_models_of_different_vocabularies_are_refused():
    batch = id_batch()
    with pytest.raises(ValueError, match="64 tokens, the recommender's 60"):
        generate_soft_ids(
            make_model(0), jnp.zeros((60, 16)), batch.item_tokens, batch.item_segments, batch.item_places,
            jnp.zeros(60, bool), id_length=2,
        )  # fmt: skip


PROMPTS, TARGETS = [[5, 6, 7, 1], [8, 9, 1], [30, 31, 32, 33, 34, 1]], [[20, 21, 1], [22, 1], [23, 24, 25, 1]]


def packed_batch(prompts, targets):
    """The examples in two rows of two places, one of which stays free."""
    lengths = [[len(tokens) for tokens in rows] for rows in (prompts, targets)]
    shape = plan_shape(*lengths, batch_size=4, longest_prompt=6, longest_target=4)._replace(rows=2, examples_per_row=2)
    shape = shape._replace(source=max(shape.source, 12), target=max(shape.target, 8))
    batches = PackedBatches(prompts, targets, shape=shape, batch_size=4, rng=np.random.default_rng(0))
    batch = batches.batch(0)
    assert len(batches) == 1 and batch.prompt_segments.max(axis=1).tolist() in ([1, 2], [2, 1])
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["an example a row", "packed"])
def test_recommender_loss_is_the_mean_over_real_target_tokens(layout):
    model = make_model(3)
    graphdef, params = nnx.split(model, nnx.Param)
    if layout == "packed":
        batch = packed_batch(PROMPTS, TARGETS)
    else:
        batch = recommender_batch([*PROMPTS, []], [*TARGETS, []], source=9, target=7)

    def loss_and_gradients(loss):
        return jax.jit(jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params))))(params)

    loss, gradients = loss_and_gradients(lambda model: recommender_loss(model, batch))
    expected = loss_and_gradients(lambda model: direct_recommender_loss(model, PROMPTS, TARGETS))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert_same_gradients(gradients, expected[1])


def test_any_token_may_stand_for_padding_in_a_supervised_batch():
    model, batch = make_model(3), packed_batch(PROMPTS, TARGETS)
    assert jitted_recommender_loss(model, with_other_padding(batch, 9)) == jitted_recommender_loss(model, batch)


def test_dropout_needs_a_key_and_follows_it():
    model, batch = make_model(3), recommender_batch(PROMPTS, TARGETS)
    losses = [float(jitted_recommender_loss(model, batch, key)) for key in (None, *map(dropout_key, (0, 1, 0)))]
    assert losses[1] == losses[3] and len(set(losses)) == 3


def test_token_cross_entropy_weighs_tokens_and_ignores_those_of_weight_zero():
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(2, 3, 4)) * 3, rng.normal(size=(5, 4)) * 3
    targets = np.array([[1, 2, 0], [4, 0, 0]])
    weights = np.array([[1.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
    logits = hidden @ table.T
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -(log_probabilities[0, 0, 1] + log_probabilities[0, 1, 2] + 0.5 * log_probabilities[1, 0, 4]) / 2.5
    hidden[0, 2] = np.nan
    floats = (jnp.asarray(array, jnp.float32) for array in (hidden, table, weights))
    hidden, table, weights = floats
    np.testing.assert_allclose(token_cross_entropy(hidden, table, jnp.asarray(targets), weights), expected, rtol=1e-5)


def test_a_batch_of_padding_only_has_loss_zero():
    targets, weights = jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3))
    assert token_cross_entropy(jnp.ones((2, 3, 4)), jnp.ones((5, 4)), targets, weights) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_an_id_loss_in_chunks_is_the_loss_of_the_whole(dropout):
    id_generator, recommender = make_id_generator(tied=False, eos=20), make_model(3, tied=False)
    rows, item_rows = [[0], [1], [2], []], [[3], [2], [0, 1], []]
    no_embedding = jnp.zeros(VOCABULARY, bool)
    key = dropout_key(0) if dropout else None

    def loss(chunks, rematerialise="none"):
        def of_models(id_generator, recommender, batch):
            return id_loss(
                id_generator, recommender, batch, no_embedding, id_length=ID_LENGTH, dropout_key=key, chunks=chunks
            )

        for model in (id_generator, recommender):
            model.config = dataclasses.replace(model.config, rematerialise=rematerialise)
        found = with_gradients(of_models, id_generator, recommender)
        return found(params_of(id_generator), params_of(recommender), id_batch(rows=rows, item_rows=item_rows))

    whole, (whole_gradients, _) = loss(1)
    chunked, (gradients, recommender_gradients) = loss(2, "layers")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(recommender_gradients))
    if dropout:
        # Other masks: near, and not the same.
        assert 0 < abs(whole - chunked) < 0.2 * whole
    else:
        np.testing.assert_allclose(chunked, whole, rtol=1e-6)
        assert_same_gradients(gradients, whole_gradients)


def test_more_chunks_take_less_memory():
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=256, num_layers=2, num_decoder_layers=1, num_heads=2
    )
    graphdef, params = nnx.split(T5(config, rngs=nnx.Rngs(0)), nnx.Param)
    batch = id_batch(rows=[[0, 1, 2]] * 4, item_rows=[[0], [1], [2], [3]] * 4, text=100)

    def temporary_bytes(chunks):
        def loss(params):
            id_generator, recommender = nnx.merge(graphdef, params), nnx.merge(graphdef, params)
            no_embedding = jnp.zeros(VOCABULARY, bool)
            return id_loss(id_generator, recommender, batch, no_embedding, id_length=ID_LENGTH, chunks=chunks)

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 0.5 * temporary_bytes(1)
