"""Packed batches: every example once, little padding, and never more in a row than fits."""

import numpy as np
import pytest

from idgenrec_jax.data.packing import PackedBatches, TokenLists, lengths_of, one_example_a_row, plan_shape
from idgenrec_jax.data.row_packing import PackedShape, pack


def make_examples(count, seed=0, longest=60):
    """Prompts of very unequal lengths, as of users with short and long histories; the first token is the example."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(2 + rng.geometric(0.06, count), longest)
    prompts = [[1000 + example, *[7] * (length - 1)] for example, length in enumerate(lengths)]
    targets = [[1000 + example, *[8] * int(rng.integers(1, 5))] for example in range(count)]
    return prompts, targets


def plan(prompts, targets, **settings):
    return plan_shape(
        [len(tokens) for tokens in prompts],
        [len(tokens) for tokens in targets],
        longest_prompt=max(map(len, prompts)),
        longest_target=max(map(len, targets)),
        **settings,
    )


def make_batches(prompts, targets, *, batch_size, shape=None, seed=1):
    shape = shape or plan(prompts, targets, batch_size=batch_size)
    rng = np.random.default_rng(seed)
    return PackedBatches(prompts, targets, shape=shape, batch_size=batch_size, rng=rng)


def read(batch):
    """The (prompt, target) pairs of a batch of prompts with a target each."""
    assert batch.choices is None and batch.order is None
    return [
        (tokens[segments == segment].tolist(), target_tokens[target_segments == segment].tolist())
        for tokens, segments, target_tokens, target_segments in zip(*batch[:4], strict=True)
        for segment in range(1, segments.max() + 1)
    ]


@pytest.mark.parametrize(("count", "batch_size"), [(64, 16), (61, 16), (7, 16), (50, 1), (200, 6)])
def test_every_example_comes_once_and_whole(count, batch_size):
    prompts, targets = make_examples(count)
    shape = plan(prompts, targets, batch_size=batch_size)
    # Room enough for the unluckiest batch.
    shape = shape._replace(source=shape.source + 40, target=shape.target + 8)
    batches = make_batches(prompts, targets, batch_size=batch_size, shape=shape)
    found = [pair for step in range(len(batches)) for pair in read(batches.batch(step))]
    assert sorted(found) == sorted(zip(prompts, targets, strict=True))
    assert len(batches) == -(-count // batch_size)
    sizes = [len(batches.examples(step)) for step in range(len(batches))]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size
    for step in range(len(batches)):
        assert batches.examples(step) == read(batches.batch(step))


def test_every_batch_has_short_and_long_prompts_alike():
    prompts, targets = make_examples(640)
    batches = make_batches(prompts, targets, batch_size=64)
    totals = [sum(len(prompt) for prompt, _ in batches.examples(step)) for step in range(len(batches))]
    shuffled = np.random.default_rng(0).permutation([len(prompt) for prompt in prompts]).reshape(10, 64).sum(axis=1)
    assert np.std(totals) < np.std(shuffled) / 5


def test_padding_is_below_a_tenth_where_prompts_padded_to_the_longest_would_be_mostly_padding():
    prompts, targets = make_examples(640)
    batches = make_batches(prompts, targets, batch_size=64)
    real = sum(map(len, prompts))
    assert 1 - real / (640 * max(map(len, prompts))) > 0.6
    positions = sum(batches.batch(step).prompt_tokens.size for step in range(len(batches)))
    assert batches.padding_shares[0] == pytest.approx(1 - real / positions) and batches.padding_shares[0] < 0.1
    target_positions = sum(batches.batch(step).target_tokens.size for step in range(len(batches)))
    assert batches.padding_shares[1] == pytest.approx(1 - sum(map(len, targets)) / target_positions)


def test_what_does_not_fit_its_batch_comes_at_the_end():
    prompts, targets = [[5] * 6] * 12, [[5]] * 12
    shape = PackedShape(rows=2, examples_per_row=2, source=8, target=4)
    batches = make_batches(prompts, targets, batch_size=4, shape=shape)
    assert [len(batches.examples(step)) for step in range(len(batches))] == [2] * 6


def test_an_order_follows_from_its_generator_alone():
    prompts, targets = make_examples(100)
    first, again, other = (make_batches(prompts, targets, batch_size=16, seed=seed) for seed in (1, 1, 2))
    steps = range(len(first))
    assert [first.examples(step) for step in steps] == [again.examples(step) for step in steps]
    assert [first.examples(step) for step in steps] != [other.examples(step) for step in steps]


def test_a_batch_makes_each_of_its_token_lists_once_and_no_other():
    prompts, targets = make_examples(40)
    made = []

    def recorded(name, lists):
        return TokenLists(lengths_of(lists), lambda example: made.append((name, example)) or lists[example])

    # Room for eight of the longest.
    shape = PackedShape(rows=2, examples_per_row=4, source=4 * 60, target=4 * 5)
    batches = make_batches(recorded("prompt", prompts), recorded("target", targets), batch_size=8, shape=shape)
    assert made == []
    batch = batches.batch(1)
    numbers = [prompt[0] - 1000 for prompt, _ in read(batch)]
    assert len(numbers) == 8
    assert sorted(made) == sorted((name, number) for name in ("prompt", "target") for number in numbers)


@pytest.mark.parametrize("row_multiple", [1, 4, 8])
def test_rows_are_a_multiple_that_the_mesh_can_split(row_multiple):
    prompts, targets = make_examples(128)
    shape = plan(prompts, targets, batch_size=16, row_multiple=row_multiple)
    assert shape.rows % row_multiple == 0 and shape.rows * shape.examples_per_row >= 16
    assert shape.source % 8 == 0 and shape.target % 2 == 0


def test_an_example_wider_than_a_row_is_refused():
    shape = PackedShape(rows=2, examples_per_row=2, source=8, target=4)
    with pytest.raises(ValueError, match="an example of 9 tokens does not fit a row of 8"):
        make_batches([[1] * 9], [[1]], batch_size=4, shape=shape)


def test_one_example_a_row_is_padded_on_the_right():
    batch = one_example_a_row([[5, 6], [7]], [[8], [9, 4]], source=3, target=2)
    assert batch.prompt_tokens.tolist() == [[5, 6, 0], [7, 0, 0]]
    assert batch.prompt_segments.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch.target_tokens.tolist() == [[8, 0], [9, 4]] and batch.target_segments.tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    "shape",
    [
        PackedShape(rows=4, examples_per_row=3, source=70, target=7),
        PackedShape(rows=3, examples_per_row=4, source=62, target=2**30),
        PackedShape(rows=12, examples_per_row=1, source=2**30, target=4),
    ],
)
def test_many_batches_are_packed_as_one_after_the_other(shape):
    prompts, targets = make_examples(12 * 40)
    lengths = np.asarray([len(tokens) for tokens in prompts]), np.asarray([len(tokens) for tokens in targets])
    lengths[0][::7] = lengths[1][::11] = 0
    batches = np.random.default_rng(0).permutation(12 * 40).reshape(40, 12).astype(np.int32)
    batches[::3, 0] = batches[::5, -1] = -1
    together = pack(batches, *lengths, shape)
    for number, batch in enumerate(batches):
        alone = pack(batch[None], *lengths, shape)
        assert together.rows(number) == alone.rows(0)
        np.testing.assert_array_equal(together.examples[number], alone.examples[0])
        np.testing.assert_array_equal(together.row[number], alone.row[0])
        # The rule itself, in so many words.
        rows, left = [[] for _ in range(shape.rows)], []
        for example in sorted(batch[batch >= 0].tolist(), key=lambda example: -lengths[0][example]):
            room = [
                row
                for row in rows
                if len(row) < shape.examples_per_row
                and lengths[0][[*row, example]].sum() <= shape.source
                and lengths[1][[*row, example]].sum() <= shape.target
            ]
            (min(room, key=lambda row: lengths[0][row].sum()) if room else left).append(example)
        assert together.rows(number) == rows and alone.without_place().tolist() == left
        sums = [int(lengths[0][row].sum()) for row in rows]
        assert together.tokens_per_row(lengths[0])[number].tolist() == sums
    assert shape.examples_per_row == 1 or len(together.without_place()), "some examples must find no place"
