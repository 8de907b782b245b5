"""Batches: pure, complete, of few shapes, and without a trace of what is held out."""

import dataclasses
import hashlib
import tracemalloc
from collections import Counter

import jax
import numpy as np
import pytest

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.examples import Examples, training_positions
from idgenrec_jax.data.held_out_batches import (
    BATCHES_PER_BUCKET,
    BucketedBatches,
    bucket_widths,
    held_out_batches,
)
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.recommender_batches import recommender_epoch, training_shape
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.templates import PromptTemplate, default_templates
from idgenrec_jax.errors import InputError

NUM_ITEMS, NUM_USERS = 30, 25
# Tokens beyond every vocabulary, so that items and users can be read back from a prompt.
ITEM, ITEM_END, USER = 10_000, 20_000, 40_000
TOKENIZER = sample_tokenizer()
# Between two and four tokens; the first names the item.
ITEM_IDS = tuple((ITEM + item, *[ITEM_END + item] * (1 + item % 3)) for item in range(NUM_ITEMS))


def make_dataset(seed=0):
    """Sequences of one to fourteen items, repeats among them."""
    rng = np.random.default_rng(seed)
    lengths = [1, 2, 3, *rng.integers(3, 15, NUM_USERS - 3)]
    return Dataset(
        name="shop",
        users=tuple(f"user{index}" for index in range(NUM_USERS)),
        items=tuple(f"item{index}" for index in range(NUM_ITEMS)),
        item_texts=tuple(f"text {index}" for index in range(NUM_ITEMS)),
        sequences=tuple(rng.integers(0, NUM_ITEMS, length).astype(np.int32) for length in lengths),
    )


def training_examples(dataset):
    """Every (user, position) to train on: from position 1 of the training sequence on."""
    lengths = [len(dataset.training_sequence(user)) for user in range(len(dataset.users))]
    return [(user, position) for user, length in enumerate(lengths) for position in range(1, length)]


def user_ids_from_training_items(dataset):
    """User IDs as `train_history` makes them: from the items of the training sequence."""
    return tuple(
        (USER + user, *(USER + 1000 + int(item) for item in dataset.training_sequence(user)))
        for user in range(len(dataset.users))
    )


def plain_user_ids(dataset):
    return tuple((USER + user,) for user in range(len(dataset.users)))


def user_ids_by_prefix(dataset):
    """User IDs that change with every item: the user's token, and as many more as items are before, up to three."""
    return tuple(
        (USER + user, *[USER + 2000 + place] * min(place, 3))
        for user, sequence in enumerate(dataset.sequences)
        for place in range(len(sequence))
    )


def make_renderer(dataset, *, user_ids=plain_user_ids, templates=None, max_history=20, max_prompt_length=512):
    by_prefix = user_ids is user_ids_by_prefix
    if templates is None:
        all_templates = default_templates(user_ids is not None, user_is_behind=by_prefix)
        templates = [template for template in all_templates if template.group == "seen"]
    return PromptRenderer(
        dataset=dataset,
        templates=tuple(PromptTokens(template, TOKENIZER, dataset.name) for template in templates),
        item_ids=ITEM_IDS,
        user_ids=None if user_ids is None else user_ids(dataset),
        eos_id=TOKENIZER.eos_id,
        max_history=max_history,
        max_prompt_length=max_prompt_length,
        user_ids_by_prefix=by_prefix,
    )


def recommender_batches(renderer, *, seed=0, epoch=0, batch_size=8, num_examples=0):
    shape = training_shape(renderer, seed=seed, batch_size=batch_size)
    return recommender_epoch(
        renderer, seed=seed, epoch=epoch, batch_size=batch_size, num_examples=num_examples, shape=shape
    )


def text_tokens():
    """The text of each item: its own token, then as many as its number, and EOS."""
    return [[50 + item, *range(100, 100 + item % 7), TOKENIZER.eos_id] for item in range(NUM_ITEMS)]


def id_batches(renderer, *, seed=0, epoch=0, num_examples=0, batch_size=6, items_per_batch=16, id_length=3, shape=None):
    shared = {"seed": seed, "id_length": id_length}
    shape = shape or id_shape(renderer, text_tokens(), batch_size=batch_size, items_per_batch=items_per_batch, **shared)
    return IdBatches(renderer, text_tokens(), epoch=epoch, num_examples=num_examples, shape=shape, **shared)


def all_batches(batches):
    return [batches.batch(step) for step in range(len(batches))]


def assert_same_batches(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for values, others in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert values.dtype == others.dtype
            np.testing.assert_array_equal(values, others)


def differ(left, right):
    return len(left) != len(right) or any(
        values.shape != others.shape or not np.array_equal(values, others)
        for a, b in zip(left, right, strict=True)
        for values, others in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def read_user(tokens):
    return next(int(token) - USER for token in tokens if USER <= token < USER + 1000)


def read_items(tokens):
    """The items of a prompt in order, after checking that every ID in it is whole."""
    of_ids = [int(token) for token in tokens if ITEM <= token < USER]
    items = [token - ITEM for token in of_ids if token < ITEM_END]
    assert of_ids == [token for item in items for token in ITEM_IDS[item]]
    return tuple(items)


def read_pairs(batch):
    """(prompt, target) of every example of a packed batch, and checks of what every row must be."""
    pairs = []
    for row in range(len(batch.prompt_tokens)):
        prompts, targets = batch.prompt_segments[row], batch.target_segments[row]
        assert not batch.prompt_tokens[row][prompts == 0].any() and not batch.target_tokens[row][targets == 0].any()
        assert prompts.max() == targets.max()
        pairs += [
            (batch.prompt_tokens[row][prompts == segment], batch.target_tokens[row][targets == segment])
            for segment in range(1, prompts.max() + 1)
        ]
    return pairs


def read_examples(batches):
    """(user, history, target) of every example, and checks of what each must be."""
    found = []
    for batch in batches:
        for prompt, target in read_pairs(batch):
            assert prompt[-1] == target[-1] == TOKENIZER.eos_id
            (item,) = read_items(target)
            assert tuple(target[:-1]) == ITEM_IDS[item]
            found.append((read_user(prompt), read_items(prompt), item))
    return found


def expected_examples(dataset, max_history=20):
    return [
        (user, tuple(sequence[max(0, position - max_history) : position].tolist()), int(sequence[position]))
        for user in range(NUM_USERS)
        for sequence in [dataset.training_sequence(user)]
        for position in range(1, len(sequence))
    ]


def test_an_epoch_is_a_pure_function_of_seed_and_epoch():
    renderer = make_renderer(make_dataset())
    first = recommender_batches(renderer, seed=3, epoch=1)
    again = recommender_batches(renderer, seed=3, epoch=1)
    again.batch(len(again) - 1)  # The order in which batches are asked for does not matter.
    assert_same_batches(all_batches(first), all_batches(again))
    assert differ(all_batches(first), all_batches(recommender_batches(renderer, seed=3, epoch=2)))
    assert differ(all_batches(first), all_batches(recommender_batches(renderer, seed=4, epoch=1)))


@pytest.mark.parametrize("max_history", [20, 4])
def test_every_training_example_comes_once_in_an_epoch(max_history):
    dataset = make_dataset()
    batches = recommender_batches(make_renderer(dataset, max_history=max_history))
    found = read_examples(all_batches(batches))
    assert Counter(found) == Counter(expected_examples(dataset, max_history))
    assert max(len(history) for _, history, _ in found) == min(max_history, 11)


def test_templates_are_drawn_anew_each_epoch():
    renderer = make_renderer(make_dataset())

    def words_of_each_example(epoch):
        return {
            (read_user(prompt), read_items(prompt)): tuple(token for token in prompt if token < ITEM)
            for batch in all_batches(recommender_batches(renderer, epoch=epoch))
            for prompt in (tokens.tolist() for tokens, _ in read_pairs(batch))
        }

    first, second = words_of_each_example(0), words_of_each_example(1)
    assert first.keys() == second.keys()
    share_changed = np.mean([first[example] != second[example] for example in first])
    assert share_changed > 0.7


def test_history_that_does_not_fit_loses_its_oldest_items_and_the_target_stays():
    dataset = make_dataset()
    renderer = make_renderer(dataset, max_prompt_length=24)
    batches = all_batches(recommender_batches(renderer))
    whole = {(user, target): [] for user, _, target in expected_examples(dataset)}
    for user, history, target in expected_examples(dataset):
        whole[user, target].append(history)
    found = read_examples(batches)
    assert len(found) == len(expected_examples(dataset))
    for user, history, target in found:
        assert any(history == full[len(full) - len(history) :] for full in whole[user, target])
    assert any(0 < len(history) < 4 for _, history, _ in found)
    assert max(len(prompt) for batch in batches for prompt, _ in read_pairs(batch)) <= 24


def test_all_epochs_with_the_same_ids_have_one_shape():
    renderer = make_renderer(make_dataset())
    shape = training_shape(renderer, seed=0, batch_size=8)
    batches = [batch for epoch in range(3) for batch in all_batches(recommender_batches(renderer, epoch=epoch))]
    assert {(batch.prompt_tokens.shape, batch.target_tokens.shape) for batch in batches} == {
        ((shape.rows, shape.source), (shape.rows, shape.target))
    }
    assert shape.rows < 8, "the case must have rows with several examples"


def prompts_of(lengths):
    """A renderer and examples whose prompts have these lengths: the ID of one item each, and EOS."""
    count = len(lengths)
    names = tuple(map(str, range(count)))
    sequences = tuple(np.array([item, item], np.int32) for item in range(count))
    renderer = make_renderer(
        Dataset("shop", names, names, names, sequences), user_ids=None, templates=[template_of("{history}")]
    )
    renderer = dataclasses.replace(renderer, item_ids=tuple((ITEM,) * (length - 1) for length in lengths))
    users = np.arange(count, dtype=np.int32)
    return renderer, Examples(users, np.ones(count, np.int32), np.zeros(count, np.uint8))


def test_a_bucket_passes_its_remainder_to_the_next_wider_one():
    prompts = prompts_of((3, 4, 5, 9, 10, 11, 12))
    batches = BucketedBatches(*prompts, widths=(8, 16), batch_size=2)
    assert [batch.prompt_tokens.shape[1] for batch in all_batches(batches)] == [8, 16, 16, 16]
    assert [batches.rows(step).tolist() for step in range(4)] == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_prompt_wider_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="a prompt of 9 tokens does not fit the widest bucket, 8"):
        BucketedBatches(*prompts_of([9]), widths=(8,), batch_size=2)


@pytest.mark.parametrize("num_buckets", [1, 2, 5])
def test_bucket_widths_are_multiples_of_eight_up_to_the_longest(num_buckets):
    widths = bucket_widths([3, 5, 9, 17, 40, 41], num_buckets)
    assert widths[-1] == 48 and len(widths) <= num_buckets
    assert list(widths) == sorted(set(widths)) and all(width % 8 == 0 for width in widths)


def template_of(input_text):
    return PromptTemplate("sequential", "seen", input_text, "{target}")


def template_of_length(length, fields):
    """A template whose fixed text has this many tokens, EOS included."""
    for count in range(1, length + 1):
        template = template_of(" ".join(["red"] * count) + " " + fields)
        if len(PromptTokens(template, TOKENIZER, "shop").render_input([], (), 512)) == length:
            return template
    raise AssertionError(f"no template of {length} tokens")


@pytest.mark.parametrize(
    ("templates", "max_prompt_length"),
    [
        # The longest fixed text has no history, so the other template's prompts are longer.
        ([template_of("red red red {user_id}"), template_of("{history}")], 512),
        # The longest fixed text has no user ID, and user IDs are long.
        ([template_of("red red red {history}"), template_of("{user_id} {history}")], 512),
        # The longest fixed text leaves no room for an item, for which the other template has room.
        ([template_of_length(16, "{history}"), template_of_length(13, "{history}")], 17),
    ],
)
def test_every_prompt_of_every_template_fits_the_shape(templates, max_prompt_length):
    dataset = make_dataset()
    renderer = make_renderer(
        dataset, user_ids=user_ids_from_training_items, templates=templates, max_prompt_length=max_prompt_length
    )
    for epoch in range(3):
        batches = all_batches(recommender_batches(renderer, epoch=epoch))
        assert sum(len(read_pairs(batch)) for batch in batches) == len(training_examples(dataset))
    longest = renderer.longest_prompt()
    for number in range(len(templates)):
        for user, position in training_examples(dataset):
            assert len(renderer.prompt(user, dataset.training_sequence(user)[:position], number)) <= longest


def test_data_without_a_training_example_is_an_input_error():
    dataset = make_dataset()
    short = Dataset("shop", dataset.users, dataset.items, dataset.item_texts, tuple(s[-3:] for s in dataset.sequences))
    short = Dataset(
        "shop", short.users[2:], short.items, short.item_texts, tuple(sequence[:3] for sequence in short.sequences[2:])
    )
    assert not training_examples(short) and len(short.evaluation_users)
    with pytest.raises(InputError, match="training"):
        recommender_batches(make_renderer(short))


def test_data_without_a_user_to_evaluate_is_an_input_error():
    dataset = make_dataset()
    short = Dataset("shop", dataset.users, dataset.items, dataset.item_texts, tuple(s[:2] for s in dataset.sequences))
    with pytest.raises(InputError, match="3"):
        held_out_batches(make_renderer(short), "test", template=0, batch_size=4, num_buckets=2)


def test_few_users_share_one_width_and_many_have_several():
    dataset = make_dataset()
    renderer = make_renderer(dataset)
    num_users = len(dataset.evaluation_users)

    def widths(batch_size):
        batches = held_out_batches(renderer, "test", template=0, batch_size=batch_size)[0]
        return {batches.batch(step).prompt_tokens.shape[1] for step in range(len(batches))}

    assert BATCHES_PER_BUCKET <= num_users < 2 * BATCHES_PER_BUCKET
    assert len(widths(num_users)) == 1
    assert len(widths(1)) == 2


def test_num_examples_are_drawn_without_replacement_and_anew_each_epoch():
    dataset = make_dataset()
    renderer = make_renderer(dataset)
    available = Counter(expected_examples(dataset))
    draws = [
        Counter(read_examples(all_batches(recommender_batches(renderer, epoch=epoch, num_examples=40))))
        for epoch in range(2)
    ]
    for draw in draws:
        assert draw.total() == 40 and draw <= available
    assert draws[0] != draws[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_batches_have_every_evaluated_user_once(split):
    dataset = make_dataset()
    renderer = make_renderer(dataset, max_history=5)
    batches, users, targets = held_out_batches(renderer, split, template=0, batch_size=4, num_buckets=2)
    np.testing.assert_array_equal(users, dataset.evaluation_users)
    expected_targets = [dataset.sequences[user][-2 if split == "validation" else -1] for user in users]
    np.testing.assert_array_equal(targets, expected_targets)
    seen = []
    for step in range(len(batches)):
        batch, rows = batches.batch(step), batches.rows(step)
        assert batch.prompt_tokens.shape[0] == 4 and batch.target_mask.any(axis=1).sum() == len(rows)
        for place, row in enumerate(rows):
            prompt = batch.prompt_tokens[place][batch.prompt_mask[place]]
            user = users[row]
            before_target = dataset.sequences[user][: -2 if split == "validation" else -1]
            assert read_user(prompt) == user
            assert read_items(prompt) == tuple(before_target[-5:].tolist())
            seen.append(row)
    assert sorted(seen) == list(range(len(users)))
    assert len({batches.batch(step).prompt_tokens.shape for step in range(len(batches))}) <= 2


def read_id_examples(batch, id_length=3):
    """(user, history, target) of every example, with the items of the texts that its slots point to.

    Checks what every row must be.
    """
    texts = []
    for tokens, segments, places in zip(batch.item_tokens, batch.item_segments, batch.item_places, strict=True):
        texts += [tokens[segments == place].tolist() if place else [] for place in places]
        assert segments.max() == places.max() and not tokens[segments == 0].any()
    held = [tuple(text) for text in texts if text]
    assert len(held) == len(set(held)), "an item is read once a batch"
    found, used = [], set()
    for row, segments in enumerate(batch.prompt_segments):
        assert segments.max() == batch.target_segments[row].max()
        padding = segments == 0
        assert not batch.prompt_tokens[row][padding].any() and (batch.slot_item[row][padding] == -1).all()
        for segment in range(1, segments.max() + 1):
            of_prompt, of_target = segments == segment, batch.target_segments[row] == segment
            slots, positions = batch.slot_item[row][of_prompt], batch.slot_position[row][of_prompt]
            items = []
            for place in np.flatnonzero((slots >= 0) & (positions == 0)):
                np.testing.assert_array_equal(slots[place : place + id_length], slots[place])
                np.testing.assert_array_equal(positions[place : place + id_length], range(id_length))
                text = texts[slots[place]]
                assert text == text_tokens()[text[0] - 50]
                items.append(text[0] - 50)
            assert (slots >= 0).sum() == id_length * len(items)
            used.update(items)
            (target,) = read_items(batch.target_tokens[row][of_target])
            found.append((read_user(batch.prompt_tokens[row][of_prompt]), tuple(items), target))
    assert used == {text[0] - 50 for text in held}
    return found


def shapes(batch):
    return jax.tree.map(np.shape, batch)


# Batches of six examples rarely have as few as six distinct items.
@pytest.mark.parametrize("items_per_batch", [16, 6])
@pytest.mark.parametrize("row_multiple", [1, 3])
def test_id_batches_hold_every_example_once_with_slots_on_its_items(items_per_batch, row_multiple):
    dataset = make_dataset()
    renderer = make_renderer(dataset, max_history=4)
    shape = id_shape(
        renderer, text_tokens(), seed=0, batch_size=6, items_per_batch=items_per_batch, id_length=3,
        row_multiple=row_multiple,
    )  # fmt: skip
    assert shape.examples <= 6 and shape.items <= items_per_batch
    batches = id_batches(renderer, shape=shape)
    found = []
    for step, batch in enumerate(all_batches(batches)):
        assert shapes(batch) == shapes(batches.batch(0))
        assert len(batch.prompt_tokens) % row_multiple == len(batch.item_tokens) % row_multiple == 0
        assert 1 <= len(read_id_examples(batch)) == len(batches.examples(step)) <= shape.examples
        assert (batch.item_places > 0).sum() <= shape.items
        found += read_id_examples(batch)
    assert Counter(found) == Counter(expected_examples(dataset, max_history=4))


def test_an_example_whose_items_all_have_the_longest_text_finds_room():
    dataset = make_dataset()
    texts = [[50 + item, *[3] * (30 if item < 12 else 0)] for item in range(NUM_ITEMS)]
    shape = id_shape(
        make_renderer(dataset, max_history=10), texts, seed=0, batch_size=2, items_per_batch=10, id_length=3
    )
    sequences = tuple(np.arange(12, dtype=np.int32) for _ in dataset.users)
    renderer = make_renderer(dataclasses.replace(dataset, sequences=sequences), max_history=10)
    batches = IdBatches(renderer, texts, seed=0, epoch=0, num_examples=0, id_length=3, shape=shape)
    assert sum(len(batches.examples(step)) for step in range(len(batches))) == len(training_examples(renderer.dataset))


def test_id_batches_are_pure_and_draw_without_replacement():
    dataset = make_dataset()
    renderer = make_renderer(dataset, max_history=4)
    first = all_batches(id_batches(renderer, seed=1, epoch=2, num_examples=20))
    assert_same_batches(first, all_batches(id_batches(renderer, seed=1, epoch=2, num_examples=20)))
    assert differ(first, all_batches(id_batches(renderer, seed=1, epoch=3, num_examples=20)))
    found = Counter(example for batch in first for example in read_id_examples(batch))
    assert found.total() == 20 and found <= Counter(expected_examples(dataset, max_history=4))


def every_example(renderer):
    """Every position of every sequence, held-out ones included, under every template, in random order."""
    found = [
        (user, position, template)
        for user, sequence in enumerate(renderer.dataset.sequences)
        for position in range(len(sequence))
        for template in range(len(renderer.templates))
    ]
    users, positions, templates = np.random.default_rng(0).permutation(found).T.astype(np.int32)
    return Examples(users, positions, templates.astype(np.uint8))


def test_what_an_id_batch_holds_is_counted_before_it_is_made():
    renderer = make_renderer(make_dataset(), max_history=6, max_prompt_length=24)
    examples = every_example(renderer)
    counted = zip(*renderer.slots_lengths(examples, 3), strict=True)
    cut = 0
    for (user, position, template), (kept_items, length) in zip(examples, counted, strict=True):
        tokens, _, _, _, kept = renderer.slots(user, renderer.dataset.sequences[user][:position], template, 3)
        assert (kept_items, length) == (len(kept), len(tokens))
        cut += len(kept) < min(position, 6)
    assert cut, "some prompts must be cut"


@pytest.mark.parametrize("user_ids", [None, plain_user_ids, user_ids_from_training_items])
@pytest.mark.parametrize("max_history", [1, 5, 20])
def test_lengths_that_batches_are_planned_from_are_those_of_what_is_rendered(user_ids, max_history):
    dataset = make_dataset()
    templates = [template_of("red {user_id} then {history} then"), template_of("{user_id}"), template_of("{history}")]
    templates = templates if user_ids else [template_of("red {history} red"), template_of("{history}")]
    templates[0] = dataclasses.replace(templates[0], target_text="a red {target} then")
    # IDs of every length from no token at all; user IDs of up to thirteen tokens, so that the rule must weigh both.
    item_ids = tuple((ITEM + item,) * (item % 6) for item in range(NUM_ITEMS))
    cut = {}
    for max_prompt_length in range(18, 60, 3):
        renderer = dataclasses.replace(
            make_renderer(dataset, user_ids=user_ids, templates=templates, max_history=max_history),
            item_ids=item_ids,
            max_prompt_length=max_prompt_length,
        )
        examples = every_example(renderer)
        prompts, targets = renderer.prompts(examples), renderer.targets(examples)
        assert prompts.lengths.tolist() == [len(prompt) for prompt in prompts]
        assert targets.lengths.tolist() == [len(target) for target in targets]
        assert max(targets.lengths) <= renderer.target_width()
        cut[max_prompt_length] = prompts.lengths.sum()
    assert max_history == 1 or len(set(cut.values())) > 3, "some prompts must be cut"


def test_training_positions_are_the_examples_of_the_data():
    dataset = make_dataset()
    assert list(zip(*training_positions(dataset), strict=True)) == training_examples(dataset)
    none = dataclasses.replace(dataset, users=(), sequences=())
    assert [len(values) for values in training_positions(none)] == [0, 0]


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_prompt_without_room_is_refused_from_lengths_as_it_is_when_rendered(is_causal):
    dataset = make_dataset()
    renderer = make_renderer(dataset, user_ids=user_ids_from_training_items, max_prompt_length=12)
    renderer = dataclasses.replace(renderer, is_causal=is_causal)
    with pytest.raises(InputError, match="max_prompt_length=12: prompt template .* takes 1[3-9] tokens before any his"):
        training_shape(renderer, seed=0, batch_size=8)
    without = dataclasses.replace(renderer, user_ids=None)
    with pytest.raises(InputError, match="has {user_id}, but there are no user IDs"):
        training_shape(without, seed=0, batch_size=8)


def test_no_prompt_is_rendered_before_its_batch_is_asked_for(monkeypatch):
    rendered, render = [], PromptTokens.render_numbered
    monkeypatch.setattr(PromptTokens, "render_numbered", lambda *given: rendered.append(given) or render(*given))
    renderer = make_renderer(make_dataset())
    held_out_batches(renderer, "test", template=0, batch_size=4, num_buckets=2)
    batches = recommender_batches(renderer)
    assert not rendered and batches.padding_shares
    assert len(batches.examples(0)) == len(rendered) == 8


def test_an_example_takes_a_few_bytes_until_it_is_rendered():
    users = 10_000
    rng = np.random.default_rng(0)
    sequences = tuple(rng.integers(0, NUM_ITEMS, (users, 13)).astype(np.int32))
    names = tuple(f"user{user}" for user in range(users))
    dataset = dataclasses.replace(make_dataset(), users=names, sequences=sequences)
    renderer = make_renderer(dataset, user_ids=None)
    shape = training_shape(renderer, seed=0, batch_size=64)
    tracemalloc.start()
    batches = recommender_epoch(renderer, seed=0, epoch=0, batch_size=64, num_examples=0, shape=shape)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / (users * 10) < 40 and most / (users * 10) < 120
    assert len(batches) >= users * 10 // 64


def test_slots_stand_where_ids_of_that_length_would_stand():
    id_length = 3
    dataset = make_dataset()
    renderer = make_renderer(dataset, max_history=6, max_prompt_length=24)
    full_ids = tuple((ITEM + item, ITEM_END + item, ITEM_END + item) for item in range(NUM_ITEMS))
    renderer = dataclasses.replace(renderer, item_ids=full_ids)
    dropped = 0
    for user, position in training_examples(dataset):
        history = dataset.training_sequence(user)[:position]
        for number in (0, 4, 7):
            tokens, slot_item, slot_position, numbers, kept = renderer.slots(user, history, number, id_length)
            dropped += len(kept) < min(len(history), 6)
            filled = [
                token if item < 0 else full_ids[kept[item]][place]
                for token, item, place in zip(tokens, slot_item, slot_position, strict=True)
            ]
            assert filled == renderer.prompt(user, history, number)
            assert (filled, numbers) == renderer.numbered_prompt(user, history, number)
    assert dropped, "some prompts must be cut"


def test_an_id_batch_of_examples_with_more_items_than_fit_says_so():
    renderer = make_renderer(make_dataset(), max_history=10)
    with pytest.raises(ValueError, match="id_items_per_batch|items_per_batch"):
        all_batches(id_batches(renderer, items_per_batch=4))


def with_other_items(dataset, places):
    """The same data with other items at these places, counted from the end, of every evaluated user's sequence."""
    sequences = [sequence.copy() for sequence in dataset.sequences]
    for user in dataset.evaluation_users:
        for place in places:
            sequences[user][place] = (sequences[user][place] + 1 + user % (NUM_ITEMS - 1)) % NUM_ITEMS
    return Dataset(dataset.name, dataset.users, dataset.items, dataset.item_texts, tuple(sequences))


def tokens_of(dataset, user_ids):
    """Every input token of every split: training batches of both phases, validation and test prompts."""
    renderer = make_renderer(dataset, user_ids=user_ids)
    recommender_epochs = [all_batches(recommender_batches(renderer, epoch=epoch)) for epoch in range(2)]
    result = {
        "recommender": [batch for batches in recommender_epochs for batch in batches],
        "id": all_batches(id_batches(renderer, items_per_batch=24)),
    }
    for split in ("validation", "test"):
        batches, users, targets = held_out_batches(renderer, split, template=0, batch_size=4, num_buckets=3)
        result[split] = [(batch.prompt_tokens, batch.prompt_mask) for batch in all_batches(batches)]
        result[split + " targets"] = [(users, targets)]
    return result


@pytest.mark.parametrize("user_ids", [None, user_ids_from_training_items])
def test_held_out_items_leave_no_trace_in_any_split_before_them(user_ids):
    dataset = make_dataset()
    before = tokens_of(dataset, user_ids)

    other_test = tokens_of(with_other_items(dataset, [-1]), user_ids)
    for split in ("recommender", "id", "validation", "validation targets", "test"):
        assert_same_batches(before[split], other_test[split])
    assert differ(before["test targets"], other_test["test targets"])

    other_both = tokens_of(with_other_items(dataset, [-1, -2]), user_ids)
    for split in ("recommender", "id", "validation"):
        assert_same_batches(before[split], other_both[split])
    assert differ(before["validation targets"], other_both["validation targets"])
    assert differ(before["test"], other_both["test"]), "the test prompt does read the validation item"


def test_the_leak_test_sees_a_user_id_made_from_the_whole_sequence():
    def leaking(dataset):
        return tuple(tuple(USER + 1000 + int(item) for item in sequence) for sequence in dataset.sequences)

    dataset = make_dataset()
    before, after = tokens_of(dataset, leaking), tokens_of(with_other_items(dataset, [-1]), leaking)
    assert differ(before["recommender"], after["recommender"]) and differ(before["validation"], after["validation"])


def digest(batches):
    """A short digest of every array of the batches."""
    found = hashlib.sha256()
    for batch in all_batches(batches):
        for values in jax.tree.leaves(batch):
            found.update(f"{values.dtype} {values.shape}".encode() + values.tobytes())
    return found.hexdigest()[:16]


def test_batches_are_those_from_before_prompts_were_rendered_on_demand():
    """A run that was begun by an earlier version goes on with the same batches. The digests were recorded from one."""
    renderer = make_renderer(make_dataset(), max_history=5, max_prompt_length=24)
    held_out, _, _ = held_out_batches(renderer, "test", template=3, batch_size=4, num_buckets=2)
    assert digest(recommender_batches(renderer, seed=3, epoch=1, batch_size=6)) == "e0aa9f0b6150fd98"
    assert digest(id_batches(renderer, seed=3, epoch=1, items_per_batch=9)) == "de04a8d3191675aa"
    assert digest(held_out) == "eca2020e1bbc18be"
