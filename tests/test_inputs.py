"""What a run is given, checked before anything is trained."""

import dataclasses
import json
import re

import pytest
from flax import nnx

from idgenrec_jax.config import Config
from idgenrec_jax.data.sample import load_data, load_sample, sample_tokenizer
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.schemes import SCHEMES
from idgenrec_jax.ids.table import load_table, save_table
from idgenrec_jax.inputs import (
    check_prompt_room,
    check_splits,
    load_inputs,
    load_prompts,
    load_tokenizer,
    own_ids,
)
from idgenrec_jax.models.huggingface import load_t5, read_config, save_t5
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.presets import preset


@pytest.fixture
def prompts(tmp_path):
    """A prompt file with two templates, one longer than the other."""
    path = tmp_path / "prompts.txt"
    path.write_text(
        "sequential; seen; someone has bought one after the other: {history} and then buys something else; {target}\n"
        "sequential; seen; {user_id} has bought the following: {history}; {target}\n"
    )
    return str(path)


def test_room_for_one_item_is_asked_for_before_anything_is_trained(prompts):
    """Exactly where one item of history begins to fit: in an ID phase as a soft ID, otherwise as one token."""
    base = Config().override({"data.prompts": prompts, "data.user_ids": "train_history", "ids.soft_length": 20})
    loaded = load_prompts(base.data, sample_tokenizer(), "sample")
    long, short = (tokens.input_length(1) for tokens in loaded.training)
    assert long > short + 1 and short > 8
    for id_epochs, id_length in ((1, 20), (0, 1)):
        config = base.override({"training.id_epochs": id_epochs})
        needed = long + id_length
        check_prompt_room(config.override({"data.max_prompt_length": needed}), loaded)
        with pytest.raises(InputError, match=f"^--config.data.max_prompt_length={needed - 1}: ") as caught:
            check_prompt_room(config.override({"data.max_prompt_length": needed - 1}), loaded)
        assert f"takes at least {needed} tokens; raise it or shorten the template" in str(caught.value)
        assert ("--config.ids.soft_length" in str(caught.value)) == bool(id_epochs)
        # The ID of a user is a token at least.
        only_short = dataclasses.replace(loaded, training=loaded.training[1:], evaluation=loaded.training[1])
        check_prompt_room(config.override({"data.max_prompt_length": short + id_length + 1}), only_short)
        with pytest.raises(InputError, match=f"takes at least {short + id_length + 1} tokens"):
            check_prompt_room(config.override({"data.max_prompt_length": short + id_length}), only_short)


def test_words_of_templates_that_the_tokenizer_cannot_write_are_warned_of(tmp_path, caplog):
    """Even where none is left: the IDs in the prompts are."""
    path = tmp_path / "prompts.txt"
    config = Config().override({"data.prompts": str(path), "data.eval_prompt": "unseen:0"}).data
    known = "t; seen; after {history} comes; {target}\nt; unseen; {history} then; item of {dataset} {target}\n"
    path.write_text(known)
    load_prompts(config, sample_tokenizer(), "sample")
    assert caplog.records == []
    unknown = "t; seen; 买了 {history} 以后; {target}\nt; unseen; {history} 然后; 商品 {target}\n"
    path.write_text(unknown, encoding="utf-8")
    assert len(load_prompts(config, sample_tokenizer(), "sample").training) == 1
    (record,) = caplog.records
    message = record.getMessage()
    start = f"prompt templates of {path}: the tokenizer does not know words of 4 of 4, such as "
    assert message.startswith(f"{start}'买了', '以后', '然后'")
    assert "; write templates in words that it knows, in a file that --config.data.prompts names, or give a" in message
    caplog.clear()
    path.write_text(known)
    load_prompts(config, sample_tokenizer(), "商店")
    (record,) = caplog.records
    assert "does not know words of 1 of 4, such as '商店'" in record.getMessage()


def test_words_of_a_scheme_that_the_tokenizer_cannot_write_are_warned_of_as_those_of_a_file_are(monkeypatch, caplog):
    wanted = {"known": "red pen", "unknown": "无线"}
    for name, words in wanted.items():
        monkeypatch.setitem(SCHEMES, name, lambda dataset, *_, words=words: [words] * len(dataset.items))
        caplog.clear()
        config = preset("sample").override({"ids.scheme": name})
        assert own_ids(config, load_sample(), sample_tokenizer()).texts[1] == f"{words} 2"
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == (1 if name == "unknown" else 0)
    assert said[0].startswith("IDs of the scheme unknown: the tokenizer does not know words of 496 of 496, such as")


def test_a_tilde_in_a_path_of_the_configuration_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("sequential; seen; {history} then; {target}\n")
    (tmp_path / "ids.txt").write_text("".join(f"{item} number {n}\n" for n, item in enumerate(load_sample().items)))
    config = preset("sample").override({"data.prompts": "~/prompts.txt", "ids.table": "~/ids.txt"})
    inputs = load_inputs(config, load_sample(), sample_tokenizer())
    assert [tokens.template.input_text for tokens in inputs.prompts.training] == ["{history} then"]
    assert inputs.given_ids.texts[3] == "number 3"


def test_the_sample_is_a_name_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    check_splits(load_data("sample"), "sample")


def test_every_reader_takes_a_tilde(tmp_path, monkeypatch):
    """The functions of the Python API, whose arguments no flag has been through."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tokenizer = sample_tokenizer()
    tokenizer.save("~/tokenizer")
    assert Tokenizer.load("~/tokenizer").equals(tokenizer)
    config = T5Config(vocab_size=8, d_model=2, d_kv=1, d_ff=2, num_layers=1, num_decoder_layers=1, num_heads=2)
    (tmp_path / "t5").mkdir()
    save_t5(T5(config, rngs=nnx.Rngs(0)), "~/t5")
    assert read_config("~/t5") == load_t5("~/t5").config == config
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.jsonl").write_text('{"id": "a", "title": "x"}\n{"id": "b", "title": "y"}\n')
    (tmp_path / "data" / "user_sequence.txt").write_text("u a b a\n")
    assert load_data("~/data").items == ("a", "b")
    save_table(load_table(save_ids(tmp_path), ("a", "b"), tokenizer), "~/table.jsonl")
    assert load_table("~/table.jsonl", ("a", "b"), tokenizer).texts == ("one", "two")
    assert not (tmp_path / "~").exists()


def save_ids(folder):
    (folder / "ids.txt").write_text("a one\nb two\n")
    return "~/ids.txt"


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        (1, 2, 'nothing to train on; expected users with a "train" of at least two'),
        (4, 0, "no validation target, by which the best state is chosen"),
        (3, 2, "no test target, which the results are of"),
        (3, 1, None),
    ],
)
def test_a_split_that_lacks_what_a_run_needs(tmp_path, train, validation, said):
    path = tmp_path / "user_sequence.jsonl"
    rows = [{"user": user, "items": list("abcab"), "train": train, "validation": validation} for user in "uv"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "item_plain_text.txt").write_text("a pen\nb ink\nc lamp\n")
    dataset = load_data(str(tmp_path))
    if said is None:
        return check_splits(dataset, str(tmp_path))
    with pytest.raises(InputError) as caught:
        check_splits(dataset, str(tmp_path))
    way_out = 'correct the counts of "train" and "validation", or leave them out for leave-one-out'
    assert str(caught.value) == f"{path}: {said}; {way_out}"


def test_own_data_and_nothing_else_has_a_tokenizer_of_its_own_texts_and_prompts(tmp_path, monkeypatch, caplog):
    """The folder called `train` is not read."""
    monkeypatch.chdir(tmp_path)
    sample_tokenizer().save(tmp_path / "train")
    (tmp_path / "prompts.txt").write_text("t; seen; после {history}; {target}\n", encoding="utf-8")
    dataset = dataclasses.replace(load_sample(), name="shop")
    own = Config().override({"data.path": str(tmp_path), "data.prompts": str(tmp_path / "prompts.txt")})
    with caplog.at_level("INFO", "absl"):
        made = load_tokenizer(own, dataset)
    (record,) = caplog.records
    said = rf"{made.size} entries \(--config.data.tokenizer=train:8000\) was trained on 496 of 496 texts in .* s; "
    assert re.search(said, record.getMessage())
    caplog.clear()
    assert len(made.encode("после")) == 1 == len(made.encode("Verano"))
    smaller = load_tokenizer(own.override({"data.tokenizer": "train:600"}), dataset)
    assert smaller.size == 600
    with caplog.at_level("WARNING"):
        assert load_tokenizer(own.override({"data.tokenizer": "train"}), dataset).equals(made)
    assert "trains a tokenizer; the folder of this name is ./train" in caplog.text
    assert load_tokenizer(own.override({"data.tokenizer": "./train"}), dataset).equals(sample_tokenizer())
    assert load_tokenizer(own.override({"data.path": "sample"}), dataset).equals(sample_tokenizer())
