"""The sequences of users in their two forms: the same data, keys of any text, splits, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import GIVEN, LEAVE_ONE_OUT, Dataset, load_dataset
from idgenrec_jax.data.examples import training_positions
from idgenrec_jax.errors import InputError
from idgenrec_jax.workdir import fingerprint

KEYS = ["0108775015", "a key with blanks", "Ключ  два", "鍵\u3000三", "12"]


def write_folder(folder, *rows, items=KEYS, text=None, card=None):
    """A data folder with `rows` (user, items, further fields) as JSON, or with `text` as user_sequence.txt."""
    folder.mkdir(exist_ok=True)
    records = [{"id": item, "title": f"Title of {item}"} for item in items]
    (folder / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    lines = [row if isinstance(row, str) else json.dumps({"user": row[0], "items": row[1], **row[2]}) for row in rows]
    if lines:
        (folder / "user_sequence.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if text is not None:
        (folder / "user_sequence.txt").write_text(text, encoding="utf-8")
    if card is not None:
        (folder / "dataset_card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def message_of(folder):
    with pytest.raises(InputError) as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_forms_are_the_same_data(tmp_path):
    items = ["0108", "12", "c"]
    text = write_folder(tmp_path / "text", items=items, text="u 0108 c c 12\nw\u00e9 12 0108\n7 c\n")
    rows = [("u", ["0108", "c", "c", 12], {}), ("w\u00e9", ["12", "0108"], {}), (7, ["c"], {})]
    first, second = load_dataset(text), load_dataset(write_folder(tmp_path / "json", *rows, items=items))
    second = dataclasses.replace(second, name=first.name)
    for field in dataclasses.fields(Dataset):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name == "sequences":
            one, other = ([(sequence.dtype, sequence.tolist()) for sequence in of_form] for of_form in (one, other))
        assert one == other, field.name
    assert first.split == second.split == LEAVE_ONE_OUT
    # That of the version before there were two forms: its runs go on.
    hashes = [fingerprint(Config(), dataset, [[1], [2], [3]]) for dataset in (first, second)]
    assert hashes[0] == hashes[1] == "6e0d028504a206d850789a24cdab0008bd7ba1396a77131cf7208417c67e82a6"


def test_keys_are_kept_exactly(tmp_path):
    users = ["User One", "user one", "007", "ผู้ใช้ 1", "User  One"]
    folder = write_folder(tmp_path / "shop", *((user, [*KEYS, 12], {}) for user in users))
    dataset = load_dataset(folder)
    assert dataset.users == tuple(users) and dataset.items == tuple(KEYS)
    assert all(sequence.tolist() == [0, 1, 2, 3, 4, 4] for sequence in dataset.sequences)
    other = dataclasses.replace(dataset, items=("0108775015", "a key with  blanks", *KEYS[2:]))
    tokens = [[item] for item in range(len(KEYS))]
    assert fingerprint(Config(), dataset, tokens) != fingerprint(Config(), other, tokens)


def test_an_item_with_blanks_needs_the_form_that_holds_it(tmp_path):
    items = ["a", "b", "b c"]
    assert load_dataset(write_folder(tmp_path / "fine", items=items, text="u a b a\n")).items == tuple(items)
    folder = write_folder(tmp_path / "shop", items=["a", "b c"], text="u a b c\n")
    assert message_of(folder).endswith(
        f"item b in the sequence of user u is not in {folder}/items.jsonl; describe it there or remove it from the "
        "sequence; for keys with blanks, such as 'b c', write user_sequence.jsonl instead"
    )


def test_a_split_of_its_own(tmp_path):
    """Users with several targets, with none in a split, with nothing to train on, and with nothing held out."""
    counts = {"u": (2, 1), "v": (3, 0), "w": (0, 1), "x": (0, 0), "y": (5, 0), "z": (1, 4)}
    rows = [(user, KEYS, {"train": train, "validation": held}) for user, (train, held) in counts.items()]
    dataset = load_dataset(write_folder(tmp_path / "shop", *rows))
    assert dataset.boundaries.tolist() == [[2, 3], [3, 3], [0, 1], [0, 0], [5, 5], [1, 5]]
    assert dataset.split == GIVEN
    assert [dataset.training_sequence(user).tolist() for user in range(6)] == [
        [0, 1], [0, 1, 2], [], [], [0, 1, 2, 3, 4], [0],
    ]  # fmt: skip
    # The first item of a sequence has no history: it is no target.
    expected = {
        "validation": [(0, 2), (5, 1), (5, 2), (5, 3), (5, 4)],
        "test": [(0, 3), (0, 4), (1, 3), (1, 4), *((user, place) for user in (2, 3) for place in range(1, 5))],
    }
    for split, cases in expected.items():
        found = dataset.held_out_cases(split)
        assert all(array.dtype == np.int32 for array in found)
        assert [(int(user), int(place)) for user, place in zip(*found, strict=True)] == cases
    assert dataset.evaluation_users.tolist() == [0, 1, 2, 3, 5]
    history, target = dataset.held_out(0, "validation")
    assert (history.tolist(), target) == ([0, 1], 2)
    for user, split, said in ((0, "test", "has 2 targets in the test split"), (4, "test", "training only")):
        with pytest.raises(ValueError, match=said):
            dataset.held_out(user, split)
    with pytest.raises(ValueError, match="not 'train'"):
        dataset.held_out_cases("train")
    trained = [(int(user), int(place)) for user, place in zip(*training_positions(dataset), strict=True)]
    assert trained == [(0, 1), (1, 1), (1, 2), *((4, place) for place in range(1, 5))]


def test_the_split_is_a_part_of_what_a_run_is_made_from(tmp_path):
    def fingerprint_of(name, **fields):
        folder = write_folder(tmp_path / name, ("u", KEYS, fields), ("v", KEYS, fields))
        return fingerprint(Config(), load_dataset(folder), [[item] for item in range(len(KEYS))])

    splits = {"a": {}, "b": {"train": 2, "validation": 1}, "c": {"train": 3, "validation": 1}}
    assert len({fingerprint_of(name, **fields) for name, fields in splits.items()}) == 3


def test_held_out_items_without_a_history_are_counted(tmp_path, caplog):
    rows = [(user, KEYS, {"train": train, "validation": 1}) for user, train in (("u", 0), ("v", 3))]
    load_dataset(write_folder(tmp_path / "shop", *rows))
    assert "user_sequence.jsonl: 1 of 7 held-out items are the first of their users and no targets" in caplog.text


def test_a_folder_with_both_forms_is_refused(tmp_path):
    folder = write_folder(tmp_path / "shop", ("u", KEYS, {}), text="u 12 12 12\n")
    assert message_of(folder) == (
        f"{folder}: holds both user_sequence.txt and user_sequence.jsonl, and nothing says which counts; "
        "remove one of them"
    )


SPLIT = {"train": 1, "validation": 1}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ('{"user": "v", "items": ', "not a JSON object (Expecting value)"),
        ('["v", "12"]', "a JSON list, not an object"),
        ('{"items": ["12"]}', "no user"),
        (("v", "12", {}), "\"items\" of user v is '12', not a list"),
        (("v", [], {}), "user v has no items; remove the line, or write one line a user"),
        (("v", ["13"], {}), "item 13 in the sequence of user v is not in"),
        (("u", ["12"], {}), "user u already has a sequence on line 1; join the two"),
        (("v", [" 12"], {}), "the item ' 12' has blanks around it"),
        (("v ", ["12"], {}), "the user 'v ' has blanks around it"),
        (("v\u3000", ["12"], {}), "the user 'v\\u3000' has blanks around it"),
        (("v", ["12", " "], {}), "no item"),
        (("v", ["12", None], {}), "no item"),
        (("v", [True], {}), "the item is True, not a text"),
        (("v", [["12"]], {}), "the item is ['12'], not a text"),
        (("v\tw", ["12"], {}), "the user 'v\\tw' holds a control character or a line break"),
        (("v\u2028w", ["12"], {}), "the user 'v\\u2028w' holds a control character or a line break"),
        (("v\x85w", ["12"], {}), "the user 'v\\x85w' holds a control character or a line break"),
        (("v\ud800", ["12"], {}), "the user 'v\\ud800' holds half a surrogate pair"),
        (("v", ["12"], {"valid": 1}), "field 'valid', expected only user, items, train, validation; nearest: "),
        (("v", ["12"], {"train": 1}), '"validation" of user v is None, expected how many items'),
        (("v", ["12"], {"train": 1.0, "validation": 0}), '"train" of user v is 1.0, expected how many items'),
        (("v", ["12"], {"train": True, "validation": 0}), '"train" of user v is True, expected how many items'),
        (("v", ["12"], {"train": 1, "validation": -1}), '"validation" of user v is -1, expected how many items'),
        (("v", ["12"], SPLIT), "user v has 1 items, fewer than 1 to train on and 1 to validate on"),
        (("v", ["12", "12"], SPLIT), 'has "train" and "validation", which the lines before lack; give them on'),
    ],
)
def test_faulty_lines(tmp_path, row, found):
    folder = write_folder(tmp_path / "shop", ("u", KEYS, {}), row)
    assert message_of(folder).startswith(f"{folder}/user_sequence.jsonl:2: {found}")


def test_a_line_without_the_split_of_the_others(tmp_path):
    folder = write_folder(tmp_path / "shop", ("u", KEYS, SPLIT), ("v", KEYS, {}))
    assert ':2: lacks "train" and "validation", which the lines before have' in message_of(folder)


@pytest.mark.parametrize("boundaries", [[[0, 1]], [[0, 4], [0, 0]], [[2, 1], [0, 0]], [[-1, 1], [0, 0]]])
def test_boundaries_that_do_not_fit_cannot_be_made(boundaries):
    sequences = (np.zeros(3, np.int32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="boundaries"):
        Dataset("shop", ("u", "v"), ("a",), ("A",), sequences, np.asarray(boundaries, np.int32))
