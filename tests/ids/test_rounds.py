"""The IDs of a run: saved, loaded, given, and what a user's ID may be made from."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from idgenrec_jax.data.choices import find_choices
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.held_out_batches import HeldOutBatch, held_out_batches
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.recommender_batches import recommender_epoch, training_shape
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.prefix_ids import load_prefix_ids
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.ids.table import load_table
from idgenrec_jax.inputs import load_inputs
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.presets import preset
from idgenrec_jax.workdir import protocol

TOKENIZER = sample_tokenizer()
NUM_ITEMS = 10
WORDS = ["red", "blue", "green", "black", "white", "steel", "wooden", "silver", "cotton", "leather"]
GRAPHDEF, PARAMS = nnx.split(
    T5(
        T5Config(
            vocab_size=TOKENIZER.size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2,
            initializer_factor=6.0,
        ),
        rngs=nnx.Rngs(1),
    ),
    nnx.Param,
)
OTHER_PARAMS = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim > 1 else leaf, PARAMS)


def make_dataset(replaced_places=()):
    """Five users with five items, another with one; `replaced_places` count from the end of each sequence of five."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(NUM_ITEMS)[:5].astype(np.int32) for _ in range(5)]
    for sequence in sequences:
        for place in replaced_places:
            sequence[place] = (sequence[place] + 1) % NUM_ITEMS
    return Dataset(
        name="shop",
        users=tuple(f"user{index}" for index in range(6)),
        items=tuple(f"item{index}" for index in range(NUM_ITEMS)),
        item_texts=tuple(f"title: {word} thing; brand: {word}" for word in WORDS),
        sequences=(*sequences, np.asarray([4], np.int32)),
    )


def make_config(**fields):
    few = {"ids.num_groups": 2, "ids.max_penalty": 1, "ids.num_lengths": 1, "ids.batch_size": 8}
    short = {"data.max_text_length": 48, "data.max_prompt_length": 128}
    return preset("sample").override({**few, **short, **fields})


def make_inputs(dataset=None, **fields):
    config = make_config(**fields)
    return config, load_inputs(config, make_dataset() if dataset is None else dataset, TOKENIZER)


def make_ids(folder, dataset=None, **fields):
    config, inputs = make_inputs(dataset, **fields)
    return RoundIds(config, inputs.dataset, TOKENIZER, inputs.prompts, graphdef=GRAPHDEF, folder=folder), inputs


def regenerate(ids, number=0, params=PARAMS, given=None):
    told = {"title": "test", "check_stop": lambda: None}
    ids.keep(given or ids.new_table(params, **told), number, params, **told)
    return ids


def write_given_table(path):
    path.write_text("".join(f"item{index} {word} thing\n" for index, word in enumerate(WORDS)), encoding="utf-8")
    return {"ids.table": str(path)}


@pytest.mark.slow
def test_tables_are_saved_and_come_back_equal(tmp_path):
    ids, inputs = make_ids(tmp_path, **{"data.user_ids": "train_history"})
    for number, params in enumerate((PARAMS, OTHER_PARAMS)):
        regenerate(ids, number, params)
    tables = ids.table, ids.user_table
    assert tables[0].items == inputs.dataset.items and tables[1].items == inputs.dataset.users
    rows = [json.loads(line) for line in (tmp_path / "ids" / "round_1.jsonl").read_text("utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"item", "id", "tokens"}] * NUM_ITEMS

    loaded, _ = make_ids(tmp_path, **{"data.user_ids": "train_history"})
    loaded.load(1)
    assert (loaded.table, loaded.user_table) == tables
    loaded.load(0)
    assert loaded.table != tables[0]
    renderer = loaded.renderer(max_history=3)
    assert renderer.item_ids == loaded.table.tokens and renderer.user_ids == loaded.user_table.tokens


def test_a_given_table_is_adopted_and_kept_as_the_round_it_was_given_for(tmp_path):
    fields = write_given_table(tmp_path / "given.txt")
    ids, inputs = make_ids(tmp_path, **fields)
    assert inputs.given_ids.texts == tuple(f"{word} thing" for word in WORDS)
    regenerate(ids, given=inputs.given_ids)
    assert ids.table == inputs.given_ids and ids.user_table is None
    assert load_table(ids.path(0), inputs.dataset.items, TOKENIZER) == inputs.given_ids
    assert ids.renderer(max_history=3).user_ids is None
    assert not ids.user_path(0).exists()


def test_a_given_table_without_an_item_is_refused(tmp_path):
    path = tmp_path / "given.txt"
    path.write_text("item0 red thing\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"{path}: 9 of 10 items"):
        make_ids(tmp_path, **{"ids.table": str(path)})


def test_evaluation_has_the_one_template_that_was_asked_for(tmp_path):
    fields = write_given_table(tmp_path / "given.txt")
    ids, inputs = make_ids(tmp_path, **fields, **{"data.eval_prompt": "unseen:1"})
    regenerate(ids, given=inputs.given_ids)
    assert len(ids.renderer(max_history=3).templates) == 10
    (template,) = ids.renderer(max_history=3, evaluation=True).templates
    assert template.template.group == "unseen" and template not in ids.renderer(max_history=3).templates


def test_all_renderers_of_a_table_find_its_choices_once(tmp_path, monkeypatch):
    found = []

    def count(*args, **kwargs):
        found.append(find_choices(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr("idgenrec_jax.data.renderer.find_choices", count)
    ids, inputs = make_ids(tmp_path, **write_given_table(tmp_path / "given.txt"))
    regenerate(ids, given=inputs.given_ids)

    def choices():
        kinds = {"is_causal": True}, {"is_causal": False}, {"max_history": 5}, {"evaluation": True}
        return [ids.renderer(**{"max_history": 3, **kind}).choices for kind in kinds]

    assert len({id(of_renderer) for of_renderer in choices()}) == len(found) == 1
    # The next table begins with one word for all items: its first choice is the second token.
    other = tmp_path / "other.txt"
    other.write_text("".join(f"item{index} thing {word}\n" for index, word in enumerate(WORDS)), encoding="utf-8")
    ids.table = load_table(other, inputs.dataset.items, TOKENIZER)
    assert all(of_renderer is found[1] for of_renderer in choices()) and len(found) == 2
    assert found[0].positions.min() < found[1].positions.min()


def input_tokens(ids, inputs):
    """Every input token of training and validation, and those of test."""
    renderer = ids.renderer(max_history=10)
    shared = {"seed": 0, "epoch": 0, "num_examples": 0}
    shape = training_shape(renderer, seed=0, batch_size=4)
    recommender = recommender_epoch(renderer, batch_size=4, shape=shape, **shared)
    limits = {"batch_size": 4, "items_per_batch": 10}
    shape = id_shape(renderer, inputs.text_tokens, seed=0, id_length=3, **limits)
    id_phase = IdBatches(renderer, inputs.text_tokens, id_length=3, shape=shape, **shared)
    evaluation = ids.renderer(max_history=10, evaluation=True)
    validation, test = (
        held_out_batches(evaluation, split, template=0, batch_size=4, num_buckets=1)[0]
        for split in ("validation", "test")
    )

    def read(batch):
        """What the models read of a batch, without the targets that held-out batches bring for their loss."""
        held_out = isinstance(batch, HeldOutBatch)
        return jax.tree.leaves((batch.prompt_tokens, batch.prompt_mask, batch.prompt_items) if held_out else batch)

    return {
        name: [np.asarray(values) for step in range(len(batches)) for values in read(batches.batch(step))]
        for name, batches in (
            ("recommender", recommender), ("id", id_phase), ("validation", validation), ("test", test)
        )
    }  # fmt: skip


def same(left, right):
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.slow
def test_held_out_items_leave_no_trace_with_user_ids_of_training_items_and_leak_as_published(tmp_path):
    tokens, tables = {}, {}
    # The given item IDs are apart from one another, so that a user's text changes with every item of his.
    given = write_given_table(tmp_path / "given.txt")
    for mode in ("train_history", "published", "prefix"):
        for places in ((), (-1,), (-1, -2)):
            folder = tmp_path / f"{mode}{len(places)}"
            ids, inputs = make_ids(folder, make_dataset(places), **given, **{"data.user_ids": mode})
            regenerate(ids, given=inputs.given_ids)
            tokens[mode, len(places)] = input_tokens(ids, inputs)
            tables[mode, len(places)] = ids.prefix_ids if mode == "prefix" else ids.user_table
    for mode in ("train_history", "prefix"):
        before = tokens[mode, 0]
        for changed in (1, 2):
            after = tokens[mode, changed]
            assert all(same(before[split], after[split]) for split in ("recommender", "id", "validation"))
        assert same(before["test"], tokens[mode, 1]["test"])
        assert not same(before["test"], tokens[mode, 2]["test"])
        assert tables[mode, 1] == tables[mode, 0]
    assert tables["train_history", 2] == tables["train_history", 0]

    assert tables["published", 1] != tables["published", 0]
    assert not same(tokens["published", 0]["recommender"], tokens["published", 1]["recommender"])


@pytest.mark.slow
def test_user_ids_by_prefix_tell_no_target_of_what_comes_after_it_and_are_loaded_as_written(tmp_path):
    given = write_given_table(tmp_path / "given.txt")
    found = []
    for places in ((), (-3,)):
        ids, inputs = make_ids(tmp_path / str(places), make_dataset(places), **given, **{"data.user_ids": "prefix"})
        regenerate(ids, given=inputs.given_ids)
        found.append(ids.prefix_ids)
        loaded, _ = make_ids(tmp_path / str(places), make_dataset(places), **given, **{"data.user_ids": "prefix"})
        loaded.load(0)
        assert loaded.prefix_ids == ids.prefix_ids and loaded.renderer(max_history=3).user_ids_by_prefix
    # Five users with five items each, another with one; the third item of each is another.
    whole, changed = (np.asarray(list(map(str, tokens)), object)[:25].reshape(5, 5) for tokens in found)
    assert (whole[:, :3] == changed[:, :3]).all() and (whole[:, 3:] != changed[:, 3:]).any()
    assert [not tokens for tokens in found[0]] == [place % 5 == 0 for place in range(26)]
    path = loaded.user_path(0)
    with pytest.raises(InputError, match=r"user 'user0' has 5 IDs, expected 4"):
        shorter = dataclasses.replace(make_dataset(), sequences=tuple(s[:4] for s in make_dataset().sequences))
        load_prefix_ids(path, shorter)
    path.write_text(path.read_text().replace("tokens", "words", 1))
    with pytest.raises(InputError, match=r'users_round_0.jsonl:1: expected \{"user", "tokens"\}'):
        loaded.load(0)


def test_user_ids_that_change_stand_behind_the_history_where_it_is_causal(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("sequential; seen; {user_id} after {history}; {target}\n")
    fields = {"data.prompts": str(prompts), "data.user_ids": "prefix"}
    with pytest.raises(InputError, match=r"has \{user_id\} before \{history\}.*put it behind"):
        make_inputs(**fields)
    make_inputs(**fields, **{"data.history": "whole"})
    _, inputs = make_inputs(**{"data.user_ids": "prefix"})
    assert not any(tokens.user_is_before for tokens in inputs.prompts.training)


@pytest.mark.parametrize(("mode", "leaks"), [("none", False), ("train_history", False), ("published", True)])
def test_the_protocol_names_the_leak(mode, leaks):
    described = protocol(make_config(**{"data.user_ids": mode}))
    assert described["user_ids"] == mode and described["leaks_held_out_items"] is leaks
