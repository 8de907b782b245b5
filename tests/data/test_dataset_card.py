"""What a data folder's card says of its texts and its split counts; a card that contradicts the data is refused."""

import json

import pytest

from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import LEAVE_ONE_OUT, load_dataset
from idgenrec_jax.workdir import protocol
from tests.data.test_sequences import KEYS, SPLIT, message_of, write_folder

BY_TIME = {"name": "time", "description": "by time:\ntest from 2014-06-01 on"}


def test_plain_texts_are_not_unescaped_again(tmp_path):
    title = "R&amp;D &lt;b&gt; &#38;"
    texts = {}
    for name, card in (("none", None), ("other", {"source": "own"}), ("plain", {"texts": "plain"})):
        folder = write_folder(tmp_path / name, ("u", KEYS, {}), card=card)
        (folder / "items.jsonl").write_text("".join(json.dumps({"id": key, "title": title}) + "\n" for key in KEYS))
        texts[name] = load_dataset(folder).item_texts[0]
    assert texts == {"none": "title: R&D <b> &", "other": "title: R&D <b> &", "plain": f"title: {title}"}


def test_the_words_of_the_split_are_those_of_the_protocol(tmp_path):
    rows = [("u", KEYS, SPLIT)]
    dataset = load_dataset(write_folder(tmp_path / "time", *rows, card={"split": BY_TIME}))
    assert protocol(Config(), dataset.split)["split"] == "by time: test from 2014-06-01 on"
    one_out = {"name": "leave_one_out", "description": "leave-one-out, repeats dropped"}
    dataset = load_dataset(write_folder(tmp_path / "loo", ("u", KEYS, {}), card={"split": one_out}))
    assert dataset.split == "leave-one-out, repeats dropped"
    assert protocol(Config())["split"] == LEAVE_ONE_OUT


@pytest.mark.parametrize(("name", "fields", "has"), [("leave_one_out", SPLIT, "have"), ("given", {}, "lack")])
def test_a_split_that_the_sequences_contradict(tmp_path, name, fields, has):
    card = {"split": {"name": name, "description": "as it is"}}
    folder = write_folder(tmp_path / "shop", ("u", KEYS, fields), card=card)
    start = f"{folder}/dataset_card.json: the split is {name}, but the lines of {folder}/user_sequence.jsonl {has} "
    assert message_of(folder).startswith(start)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (["split"], "expected an object, found list"),
        ({"texts": "html"}, "texts is 'html', expected \"plain\" or no such field"),
        ({"split": "time"}, "split.name is None, expected str"),
        ({"split": {"name": "time"}}, "split.description is None, expected str"),
        ({"split": {"name": "other", "description": "so"}}, "expected a name, one of leave_one_out, given, time"),
        ({"split": {"name": "time", "description": " "}}, "a description that is not blank"),
    ],
)
def test_a_card_of_another_form(tmp_path, card, said):
    message = message_of(write_folder(tmp_path / "shop", ("u", KEYS, SPLIT), card=card))
    assert message.startswith(f"{tmp_path}/shop/dataset_card.json: ") and said in message
    assert message.endswith("mend it, or delete it: it is no part of the data")
