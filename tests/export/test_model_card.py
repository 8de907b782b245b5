"""Exported tokenizers and the cards' code, with tokenizers of several kinds: both read the tokens of training."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import tokenizers
from flax import nnx
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.tokenizer_training import train_tokenizer
from idgenrec_jax.export.folders import example_history, write_item_ids
from idgenrec_jax.export.model_card import id_generator_card, recommender_card
from idgenrec_jax.export.tokenizer_files import ExportedTokenizer, save_tokenizer
from idgenrec_jax.ids.table import IdTable, save_table
from idgenrec_jax.inputs import load_prompts
from idgenrec_jax.models.create import random_config
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.sharding import make_mesh
from idgenrec_jax.trained_run import RunIds, TrainedRun, evaluation_renderer, load_ids

TEXTS = ("red kettle", "blue jug", "green mug 2", "grinder", "red kettle 2", "1984")
SENTENCES = ["after red kettle; blue jug; green mug 2 comes", "title: red kettle", "grinder; 1984; red kettle 2"] * 20
SPECIAL = ["<pad>", "</s>", "<unk>"]


def trained(model, trainer, **parts):
    backend = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def t5_like():
    return sample_tokenizer()


def byte_level(prefix=False):
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=decoders.ByteLevel(),
    )
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")


def byte_level_with_prefix():
    return byte_level(prefix=True)


def word_pieces():
    """As BERT's, which puts its own tokens around a text."""
    backend = trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL + ["[CLS]", "[SEP]"], show_progress=False),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")


def across_words():
    """Tokens that go over the ends of words: a text of a prompt never has the tokens of its parts."""
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    return Tokenizer(trained(models.BPE(unk_token="<unk>"), trainer), pad_token="<pad>", eos_token="</s>")


def own_texts():
    """As a run on own data trains it: what its texts do not have is spelt in bytes."""
    return Tokenizer.from_json(train_tokenizer(["title: red kettle", "title: grinder 1984"], 512).to_str())


KINDS = [t5_like, byte_level, byte_level_with_prefix, word_pieces, across_words, own_texts]


def write_export(folder, tokenizer, texts=TEXTS, **fields):
    """Export a run with `texts` as IDs, without the weights; returns the card's code and what prompts come from.

    It reads whole histories, unless `fields` say otherwise.
    """
    items = tuple(f"i{number}" for number in range(len(texts)))
    table = IdTable(items, tuple(texts), tuple(tuple(tokenizer.encode(text)) for text in texts))
    config = Config().override({"data.history": "whole", "evaluation.num_beams": 20, **fields})
    data = {"name": "shop", "users": 1, "items": len(items), "interactions": 3, "fingerprint": "of no data"}
    models = dict.fromkeys(run_files.CHECKPOINT_NAMES, asdict(random_config(config.recommender, tokenizer)))
    description = {"config": config.to_json(), "data": data, "models": models, "protocol": {}, "packages": {}}
    (folder / "config.json").write_text(json.dumps(description))
    selected = {"round": 1, "phase": "recommender"}
    run = TrainedRun(
        folder, config, tokenizer, make_mesh(config.mesh), {}, {}, tokenizer.size, selected, "shop", len(items)
    )
    ids = RunIds(table, None, load_prompts(config.data, tokenizer, "shop").evaluation)
    renderer = evaluation_renderer(run, ids)
    save_tokenizer(tokenizer, folder / "recommender")
    exported = ExportedTokenizer(folder / "recommender")
    card = recommender_card(run, ids, renderer, exported, history=[0, 1, len(items) - 1])
    (folder / "card.md").write_text(card)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    write_item_ids(table, [renderer.target(item, 0) for item in range(len(items))], folder / "item_ids.jsonl")
    return code, renderer


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_tokenizer_ends_texts_as_training_does(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = kind()
    save_tokenizer(tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("red kettle", "title: blue jug 2", "1984", "Größe 无线 🎧"):
        found = loaded(text)
        assert found.input_ids == [*tokenizer.encode(text), tokenizer.eos_id]
        assert set(found) == {"input_ids", "attention_mask"}, "a T5 takes nothing else"
    # Read again, it is the tokenizer it was.
    again = Tokenizer.load(tmp_path)
    assert again.encode("red kettle") == tokenizer.encode("red kettle") and again.eos_id == tokenizer.eos_id


@pytest.mark.parametrize("kind", [t5_like, word_pieces, own_texts])
def test_the_card_asks_with_a_text_that_has_the_tokens_of_training(kind, tmp_path):
    code, renderer = write_export(tmp_path, kind())
    prompt = re.search(r"^prompt = '(.*)'$", code, re.MULTILINE)[1]
    tokens = ExportedTokenizer(tmp_path / "recommender").encode(prompt)
    assert tokens == renderer.prompt(0, np.asarray([0, 1, 5], np.int32), 0)


@pytest.mark.parametrize("kind", [byte_level, byte_level_with_prefix, across_words])
def test_where_no_text_has_these_tokens_the_card_joins_those_of_the_ids(kind, tmp_path):
    code, renderer = write_export(tmp_path, kind())
    assert "AutoTokenizer" not in code
    lines = (tmp_path / "item_ids.jsonl").read_text().splitlines()
    names = {"items": [json.loads(line) for line in lines]}
    exec(code[code.index("tokens_of = ") : code.index("inputs = ")], names)
    assert names["prompt"] == renderer.prompt(0, np.asarray([0, 1, 5], np.int32), 0)


VOCABULARY = {"training.softmax": "vocabulary"}
CAUSAL = {"data.history": "causal", "evaluation.seen_items": "remove"}


@pytest.mark.parametrize(
    ("fields", "said", "left_out"),
    [
        (VOCABULARY, [], ["Softmax over", "renormalize_logits", "Causal", "Items of the history", "**Search"]),
        ({}, ["**Softmax over", "renormalize_logits=True"], ["Causal", "Items of the history", "**Search"]),
        (CAUSAL, ["**Softmax over", "**Causal", "**Items of the history", "20 + len(set(history))"], ["**Search"]),
        ({"evaluation.search": "exact"}, ["**Search.**"], ["Causal", "Items of the history"]),
        (
            VOCABULARY | {"data.history": "causal", "training.whole_epochs": 1, "evaluation.seen_items": "remove"},
            ["**Items of the history"],
            ["Causal", "renormalize_logits"],
        ),
    ],
    ids=["vocabulary", "catalogue", "causal", "exact", "whole at last"],
)
def test_the_card_says_what_the_run_needs_and_no_more(fields, said, left_out, tmp_path):
    write_export(tmp_path, t5_like(), **fields)
    card = (tmp_path / "card.md").read_text()
    assert [words for words in said if words not in card] == []
    assert [words for words in left_out if words in card] == []


@pytest.mark.parametrize("kind", [t5_like, across_words, own_texts])
def test_a_causal_card_numbers_the_tokens_as_training_does(kind, tmp_path):
    code, renderer = write_export(tmp_path, kind(), **CAUSAL)
    lines = (tmp_path / "item_ids.jsonl").read_text().splitlines()
    torch = pytest.importorskip("torch")
    names = {"items": [json.loads(line) for line in lines], "torch": torch}
    exec(code[code.index("tokens_of = ") : code.index("hooks = ")], names)
    tokens, numbers = renderer.numbered_prompt(0, np.asarray([0, 1, 5], np.int32), 0)
    assert names["prompt"] == tokens and names["numbers"].tolist() == [numbers]
    assert set(numbers) == {0, 1, 2, 3, 4}
    sees = np.asarray(numbers)[None, :] <= np.asarray(numbers)[:, None]
    np.testing.assert_array_equal(names["sees"].numpy(), sees[None, None])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fields", "found"),
    [
        (t5_like, VOCABULARY, ["i0", "i1", "i2", "i3", "i4"]),
        (t5_like, {}, ["i0", "i1", "i2", "i3", "i4"]),
        (across_words, {}, ["i0", "i1", "i2", "i3", "i4"]),
        (across_words, CAUSAL, ["i2", "i3"]),
    ],
    ids=["vocabulary", "text", "tokens", "causal"],
)
def test_the_card_of_few_items_names_each_once(kind, fields, found, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    tokenizer = kind()
    code, _ = write_export(tmp_path, tokenizer, TEXTS[:5], **fields)
    config = T5Config(
        vocab_size=tokenizer.size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.eos_id, decoder_start_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save_t5(T5(config, rngs=nnx.Rngs(0)), tmp_path / "recommender")
    monkeypatch.chdir(tmp_path / "recommender")
    code = code.replace("do_sample=False", "do_sample=False, max_new_tokens=40")
    exec(code, {})
    assert sorted(capsys.readouterr().out.split()) == found


def test_the_card_says_how_the_data_were_split(tmp_path):
    write_export(tmp_path, t5_like())
    config = Config()
    selected = {"round": 1, "phase": "recommender"}
    run = TrainedRun(
        tmp_path, config, t5_like(), make_mesh(config.mesh), {}, {}, 10, selected, "shop", len(TEXTS), "by time, told"
    )
    metrics = {"ndcg@10": 0.5}
    results = {"validation": metrics, "test": metrics, "popularity": {"validation": metrics, "test": metrics}}
    (tmp_path / "results.json").write_text(
        json.dumps(results | {"selected": {"step": 1}, "seconds": 1.0, "example_ids": []})
    )
    assert "\nby time, told; whole catalogue ranked by beam search" in id_generator_card(run)


def test_the_example_is_of_a_user_with_something_to_train_on(tmp_path):
    tokenizer, items = t5_like(), tuple(f"i{number}" for number in range(len(TEXTS)))
    rows = [("ann", ["i5", "i4", "i3"], 0), ("bob", ["i2", "i1", "i0"], 2)]
    lines = [{"user": user, "items": taken, "train": train, "validation": 0} for user, taken, train in rows]
    (tmp_path / "user_sequence.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "item_plain_text.txt").write_text("".join(map("{} {}\n".format, items, TEXTS)))
    tokens = tuple(tuple(tokenizer.encode(text)) for text in TEXTS)
    save_table(IdTable(items, TEXTS, tokens), tmp_path / run_files.item_ids(0))
    config = Config().override({"data.path": str(tmp_path)})
    run = TrainedRun(tmp_path, config, tokenizer, make_mesh(config.mesh), {}, {}, 0, {"id_round": 0}, "shop", 6)
    assert example_history(run, load_ids(run), None) == [2, 1]
