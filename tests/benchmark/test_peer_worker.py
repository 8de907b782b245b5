"""The benchmark's PyTorch worker: its outputs on tiny models must equal this package's own.

Two tests start it as the benchmark does, the others spare the seconds in which a process imports PyTorch.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from idgenrec_jax.data.held_out_batches import pad_rows
from idgenrec_jax.data.id_batches import IdBatch
from idgenrec_jax.data.packing import one_example_a_row
from idgenrec_jax.decoding.beam import BeamResult
from idgenrec_jax.decoding.diverse import diverse_beam_search
from idgenrec_jax.decoding.trie import build_trie
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.id_loss import generate_soft_ids, id_loss
from idgenrec_jax.training.recommender_loss import recommender_loss
from tests.decoding.tiny_t5 import assert_same_items, search_items, start

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")), reason="needs PyTorch"
)

WORKER = Path(__file__).parents[2] / "idgenrec_jax" / "benchmark" / "peer_worker.py"
VOCABULARY, PAD, EOS = 64, 0, 1
ON_CPU = {"threads": 1, "device": "cpu", "dtype": "float32"}


def make_model(seed, *, tied=True, eos=EOS):
    """A random T5; a tied one gets small embeddings, as it would repeat its start token otherwise."""
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2,
        feed_forward="relu" if tied else "gated-gelu", tie_word_embeddings=tied, eos_token_id=eos,
    )  # fmt: skip
    model = T5(config, rngs=nnx.Rngs(seed))
    if tied:
        model.shared.table[...] *= 0.2
        model.decoder.final_norm.scale[...] *= 20.0
    return model


def random_rows(seed, count, longest):
    """Rows of 2 to `longest` tokens, EOS included."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    return [[*rng.integers(2, VOCABULARY, length).tolist(), EOS] for length in lengths]


def write_job(folder, kind, models, ragged, arrays=None, **fields):
    """A folder for the worker: `models` by name, `ragged` rows of tokens by name, and the job's own fields."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        save_t5(model, folder / name)
    inputs = dict(arrays or {})
    for name, rows in ragged.items():
        inputs[f"{name}_tokens"] = np.concatenate([np.asarray(row, np.int32) for row in rows])
        inputs[f"{name}_lengths"] = np.array([len(row) for row in rows], np.int32)
    np.savez(folder / "inputs.npz", **inputs)
    (folder / "job.json").write_text(json.dumps({"kind": kind, **ON_CPU, **fields}), encoding="utf-8")
    return folder


def converse(folder, *commands, python=None):
    """The worker's answers to commands given one after the other, its exit status and its standard error.

    It is a process of `python`, or this one where none is given.
    """
    given = "".join(json.dumps({"command": command}) + "\n" for command in commands)
    if python is None:
        return converse_here(folder, given)
    result = subprocess.run(
        [python, WORKER, folder], input=given, capture_output=True, text=True, timeout=300, check=False
    )
    return [json.loads(line) for line in result.stdout.splitlines()], result.returncode, result.stderr


def converse_here(folder, given):
    """The same without a process, by what its main calls."""
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(WORKER.parent)
        # The worker sets it for its own process.
        patch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))
        patch.setattr(sys, "stdin", io.StringIO(given))
        worker = importlib.import_module("peer_worker")
        try:
            worker.serve(folder, answers.append)
        except worker.JobError as error:
            return [*answers, {"error": str(error)}], 1, ""
    return answers, 0, ""


def outputs_of(folder, python=None, num_units=None):
    """The worker's outputs; where `num_units` is given, work that trains must be done in between and change none."""
    commands = ("run", "outputs", "peak", "quit") if num_units is not None else ("outputs", "quit")
    answers, status, errors = converse(folder, *commands, python=python)
    assert status == 0, (answers, errors)
    assert answers[0]["ready"] and answers[0]["torch"] and answers[0]["transformers"]
    if num_units is not None:
        assert answers[1]["units"] == num_units and answers[1]["seconds"] > 0
        assert answers[3]["peak_bytes"] > 2**26 and answers[3]["device_peak_bytes"] is None
    assert {"written": True} in answers and len(answers) == len(commands)
    with np.load(folder / "outputs.npz") as arrays:
        return dict(arrays)


def loss_and_norm(loss, model):
    """The value of `loss(model)` and the norm of its gradient in the model's parameters."""
    graphdef, params = nnx.split(model, nnx.Param)
    value, gradients = jax.jit(jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params))))(params)
    return float(value), float(optax.global_norm(gradients))


def padded(rows, fill=0):
    return pad_rows(rows, len(rows), max(map(len, rows)), fill)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_constrained_beam_finds_the_items_of_our_search(tied, tmp_path):
    model = make_model(4, tied=tied)
    items = [[5], [5, 9], [5, 9, 3], [8, 2], [8, 3, 3, 4], [40, 41, 42, 43], [40, 7], [63]]
    prompts = random_rows(1, 7, 9)
    job = write_job(
        tmp_path, "constrained_beam", {"recommender": model}, {"prompts": prompts, "items": items},
        num_beams=5, batch_size=3, length_penalty=1.0, max_length=6,
    )  # fmt: skip
    found = outputs_of(job, num_units=7)
    trie = build_trie(items, vocab_size=VOCABULARY, eos_token_id=EOS)
    ours = search_items(model, *padded(prompts), trie, 5, 1.0)
    assert found["items"].dtype == np.int32 and found["scores"].dtype == np.float32
    assert_same_items(BeamResult(found["items"], found["scores"]), ours.items, ours.scores)
    assert len(np.unique(found["items"])) > 5, "the prompts must have different answers"


def test_fewer_items_than_beams_leave_places_empty(tmp_path):
    model, items, prompts = make_model(4), [[5], [5, 9], [8, 2]], random_rows(2, 2, 5)
    job = write_job(
        tmp_path, "constrained_beam", {"recommender": model}, {"prompts": prompts, "items": items},
        num_beams=4, batch_size=2, length_penalty=0.0, max_length=4,
    )  # fmt: skip
    found = outputs_of(job)
    assert (np.sort(found["items"]) == [-1, 0, 1, 2]).all()
    assert (np.isneginf(found["scores"]) == (found["items"] == -1)).all()


@pytest.mark.slow
def test_diverse_beam_finds_the_sequences_of_our_search(tmp_path):
    import transformers

    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) > (4, 56):
        pytest.skip("group beam search is in transformers up to 4.56 only")
    check_diverse_beam(tmp_path, None)


def check_diverse_beam(folder, python):
    model, texts = make_model(7, tied=False), random_rows(3, 7, 12)
    job = write_job(
        folder, "diverse_beam", {"id_generator": model}, {"texts": texts},
        num_groups=5, batch_size=3, diversity_penalty=1.5, min_length=4, max_length=9,
    )  # fmt: skip
    found = outputs_of(job, python, num_units=7)
    graphdef, params = nnx.split(model, nnx.Param)

    @jax.jit
    def search(params, tokens, mask):
        step, cache = start(nnx.merge(graphdef, params), tokens, mask, 5, 8)
        return diverse_beam_search(
            step, cache, batch_size=7, num_beams=5, num_groups=5, diversity_penalty=1.5, min_length=4, max_length=9,
            vocab_size=VOCABULARY, eos_token_id=EOS, pad_token_id=PAD, start_token_id=PAD,
        )  # fmt: skip

    ours = search(params, *map(jnp.asarray, padded(texts)))
    np.testing.assert_array_equal(found["tokens"], np.asarray(ours.tokens))
    np.testing.assert_allclose(found["scores"], np.asarray(ours.scores), atol=1e-4, rtol=0)


def test_diverse_beam_names_the_way_out_where_transformers_has_it_no_more(tmp_path):
    import transformers

    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) <= (4, 56):
        pytest.skip("this transformers has group beam search")
    job = write_job(tmp_path, "diverse_beam", {}, {"texts": [[3, EOS]]})
    error = the_error(job)
    assert "--peer_python" in error and transformers.__version__ in error


@pytest.mark.slow
def test_recommender_training_starts_from_our_loss_and_gradient(tmp_path):
    model = make_model(3)
    prompts, targets = random_rows(4, 11, 9), random_rows(5, 11, 5)
    job = write_job(
        tmp_path, "recommender_training", {"recommender": model}, {"prompts": prompts, "targets": targets},
        batch_size=4, learning_rate=0.01, weight_decay=0.01, clip_norm=1.0, num_examples=15, seed=1, dropout_rate=0.1,
        compile=False,
    )  # fmt: skip
    # Eleven examples in batches of four, and one batch of the next epoch.
    found = outputs_of(job, sys.executable, num_units=4 + 4 + 3 + 4)
    batch = one_example_a_row(prompts[:4], targets[:4], source=9, target=5)
    batch = jax.tree.map(jnp.asarray, batch)
    loss, norm = loss_and_norm(lambda model: recommender_loss(model, batch), model)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["gradient_norm"], norm, rtol=1e-5)


ID_LENGTH = 4
TEXTS = ([5, 9, 13, 2, EOS], [40, 41, EOS], [23, 7, 55, EOS], [31, 60, 12, 33, 8, EOS])
# Prompts as tokens and (place in the history,); item 1 is in two histories, item 3 twice in one.
ID_EXAMPLES = (
    ([10, 11, (0,), 12, (1,), 13, 1], [0, 1], [20, 21, 1]),
    ([10, (0,), 12, (1,), 1], [1, 2], [22, 1]),
    ([14, (0,), 12, (1,), 12, (2,), 15, 16, 1], [3, 3, 0], [23, 24, 25, 1]),
    ([9, 9, 9, (0,), 1], [2], [5, 1]),
)


def slots_of(prompt):
    """Tokens, slot items and slot positions of one of the prompts above."""
    columns = []
    for part in prompt:
        if isinstance(part, tuple):
            columns += [(PAD, part[0], position) for position in range(ID_LENGTH)]
        else:
            columns.append((part, -1, 0))
    return [list(values) for values in zip(*columns, strict=True)]


def one_a_row(sequences):
    """Tokens, and the segments of rows that hold one sequence each."""
    tokens, mask = padded(sequences)
    return jnp.asarray(tokens), jnp.asarray(mask, jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eos", "pad_histories"), [(34, False), (EOS, True)], ids=["ids_end_early", "ids_run_on_and_padded_histories"]
)
def test_id_training_starts_from_our_loss_and_gradient(eos, pad_histories, tmp_path):
    id_generator, recommender = make_model(2, eos=eos), make_model(3)
    no_embedding = np.zeros(VOCABULARY, bool)
    no_embedding[48] = True
    prompts, histories, targets = zip(*ID_EXAMPLES, strict=True)
    tokens, slot_items, slot_positions = zip(*map(slots_of, prompts), strict=True)
    job = write_job(
        tmp_path, "id_training", {"id_generator": id_generator, "recommender": recommender},
        {"texts": TEXTS, "prompts": tokens, "histories": histories, "targets": targets},
        {
            "prompts_slot_item": np.concatenate(slot_items).astype(np.int32),
            "prompts_slot_position": np.concatenate(slot_positions).astype(np.int32),
            "no_embedding": no_embedding,
        },
        batch_size=3, id_length=ID_LENGTH, pad_histories=pad_histories, learning_rate=0.01, num_steps=3,
    )  # fmt: skip
    found = outputs_of(job, num_units=3 + 1 + 3)
    # Here the slots name rows of the texts; there places in the example's history.
    rows = [
        [history[place] if place >= 0 else -1 for place in places]
        for history, places in zip(histories, slot_items, strict=True)
    ]
    batch = IdBatch(
        *one_a_row(TEXTS),
        jnp.ones((len(TEXTS), 1), jnp.int32),
        *one_a_row(tokens[:3]),
        jnp.asarray(padded(rows[:3], fill=-1)[0]),
        jnp.asarray(padded(slot_positions[:3])[0]),
        *one_a_row(targets[:3]),
    )
    mask = generate_soft_ids(
        id_generator, recommender.shared.table[...], batch.item_tokens, batch.item_segments, batch.item_places,
        jnp.asarray(no_embedding), id_length=ID_LENGTH,
    ).mask  # fmt: skip
    assert len(np.unique(mask.sum(1))) > 1, "the IDs must differ in length"
    loss, norm = loss_and_norm(
        lambda model: id_loss(model, recommender, batch, jnp.asarray(no_embedding), id_length=ID_LENGTH), id_generator
    )
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["gradient_norm"], norm, rtol=1e-4)


def the_error(folder, *commands, python=None):
    """The one line of a worker that must fail."""
    answers, status, _ = converse(folder, *commands, python=python)
    assert status == 1 and list(answers[-1]) == ["error"] and "\n" not in answers[-1]["error"]
    return answers[-1]["error"]


@pytest.mark.slow
def test_a_job_that_cannot_be_done_is_answered_in_one_line(tmp_path):
    assert "job.json" in the_error(tmp_path / "nowhere", python=sys.executable)
    job = write_job(tmp_path, "greedy", {}, {"prompts": [[3, EOS]]})
    error = the_error(job)
    assert "'greedy'" in error and "constrained_beam, diverse_beam, recommender_training, id_training" in error
    write_job(tmp_path, "constrained_beam", {"recommender": make_model(1)}, {"prompts": [[3, EOS]]})
    assert "items_tokens is missing" in the_error(job)


@pytest.mark.slow
def test_unknown_commands_and_missing_fields_are_answered_in_one_line(tmp_path):
    job = write_job(
        tmp_path, "constrained_beam", {"recommender": make_model(1)}, {"prompts": [[3, EOS]], "items": [[4]]}
    )
    assert "'stop'" in the_error(job, "stop")
    assert "batch_size is missing" in the_error(job, "run")
