"""The embedded catalogue: the same everywhere, believable, and far easier for a sequence model than for popularity."""

import hashlib
import re
import subprocess
import sys
from collections import Counter

import pytest

from idgenrec_jax.data.make_sample_tokenizer import train_sample_tokenizer, training_texts
from idgenrec_jax.data.sample import load_sample, sample_tokenizer

DIGEST = "6112a294fb330887c9b62c689f7d2a06f9147dabfc03d0df0773e682285feba1"


def test_the_catalogue_is_the_same_on_every_machine():
    dataset = load_sample()
    digest = hashlib.sha256("\n".join([*dataset.users, *dataset.items, *dataset.item_texts]).encode())
    for sequence in dataset.sequences:
        digest.update(sequence.astype("<i4").tobytes() + b"\n")
    assert digest.hexdigest() == DIGEST


def test_sizes():
    dataset = load_sample()
    assert dataset.name == "sample"
    assert (len(dataset.items), len(dataset.users)) == (496, 1000)
    assert {len(sequence) for sequence in dataset.sequences} == set(range(5, 16))
    assert len(dataset.evaluation_users) == 1000
    bought = {int(item) for sequence in dataset.sequences for item in sequence[:-2]}
    assert len(bought) == len(dataset.items), "every item is trained on"


def test_texts_differ_and_have_all_fields():
    texts = load_sample().item_texts
    assert len(set(texts)) == len(texts)
    assert all(re.fullmatch(r"title: .+; brand: .+; categories: .+; description: .+\.", text) for text in texts)


def test_sequences_are_shared_read_only():
    with pytest.raises(ValueError, match="read-only"):
        load_sample().sequences[0][0] = 1


def test_loading_takes_less_than_a_second():
    # In a process of its own, since the shape checks of the tests slow every call in the package down.
    program = (
        "import time; start = time.process_time(); from idgenrec_jax.data.sample import load_sample, sample_tokenizer; "
        "middle = time.process_time(); load_sample(); sample_tokenizer(); print(time.process_time() - middle)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1


def hit_rate_at_10(rank):
    dataset = load_sample()
    hits = 0
    for user in dataset.evaluation_users:
        history, target = dataset.held_out(int(user), "test")
        hits += target in rank([int(item) for item in history])
    return hits / len(dataset.evaluation_users)


def test_order_predicts_far_better_than_popularity():
    dataset = load_sample()
    popularity = Counter()
    following = {item: Counter() for item in range(len(dataset.items))}
    for user in range(len(dataset.users)):
        sequence = [int(item) for item in dataset.training_sequence(user)]
        popularity.update(sequence)
        for before, after in zip(sequence[:-1], sequence[1:], strict=True):
            following[before][after] += 1
    most_popular = [item for item, _ in popularity.most_common(10)]
    by_popularity = hit_rate_at_10(lambda history: most_popular)
    by_last_item = hit_rate_at_10(lambda history: [item for item, _ in following[history[-1]].most_common(10)])
    assert 0.01 < by_popularity < 0.05
    assert by_last_item > 5 * by_popularity
    assert by_last_item < 0.6, "a catalogue that gives every answer away measures nothing"


def test_habits_show_in_the_sequences():
    dataset = load_sample()
    titles = [text.removeprefix("title: ").partition(";")[0] for text in dataset.item_texts]
    steps = Counter()
    refills = set()
    for sequence in dataset.sequences:
        bought = [titles[item] for item in sequence]
        for index, title in enumerate(bought):
            before = bought[:index]
            number = re.fullmatch(r"(.+) (\d): .+", title)
            if number and int(number[2]) > 1:
                steps["volume"] += 1
                steps["volume in order"] += any(re.match(rf"{number[1]} {int(number[2]) - 1}:", one) for one in before)
            if " for " in title:
                steps["belonging"] += 1
                device = title.partition(" for ")[2]
                steps["belonging after device"] += any(one.endswith(device) for one in before)
        refills |= {title for title in bought if bought.count(title) > 1}
    assert steps["volume in order"] > 0.5 * steps["volume"]
    assert steps["belonging after device"] > 0.6 * steps["belonging"]
    assert any("Cartridges" in title for title in refills), "refills are bought again"


def test_the_committed_tokenizer_fits_the_catalogue():
    tokenizer = sample_tokenizer()
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1) and 1000 < tokenizer.size <= 2000
    tokens = tokenizer.encode_batch(load_sample().item_texts)
    assert not any(2 in sequence for sequence in tokens), "run python -m idgenrec_jax.data.make_sample_tokenizer"
    assert max(len(sequence) for sequence in tokens) <= 60


def test_cleaned_words_survive_encoding_at_one_token_a_word():
    tokenizer = sample_tokenizer()
    for text in load_sample().item_texts:
        words = re.findall(r"[^\W_]+", text.lower())
        tokens = tokenizer.encode(" ".join(words))
        assert tokenizer.decode(tokens) == " ".join(words)
        assert len(tokens) == len(words), "run python -m idgenrec_jax.data.make_sample_tokenizer"


def test_unseen_words_are_spelt_out_without_unknown_tokens():
    tokenizer = sample_tokenizer()
    tokens = tokenizer.encode("Xylophone #42 (new!)")
    assert 2 not in tokens and tokenizer.decode(tokens) == "xylophone #42 (new!)"


def test_the_script_makes_an_equivalent_tokenizer():
    made = train_sample_tokenizer()
    assert [made.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    committed = sample_tokenizer()
    texts = [*load_sample().item_texts, *training_texts()]
    encodings = made.encode_batch(texts, add_special_tokens=False)
    assert [len(one.ids) for one in encodings] == [len(tokens) for tokens in committed.encode_batch(texts)]
