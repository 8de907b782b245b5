"""Every command of README and docs/ runs, in order, on a small data folder; what installs and tests is CI's own."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import commands, scripts
from flax import nnx

from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.ids.keywords import telling_words
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5, T5Config

ROOT = Path(__file__).parent.parent
COMMANDS = commands()

# What makes a training run of any preset small: the commands themselves stay as they are printed.
SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 1}
SMALL = [
    *(f"--config.{model}.{name}={size}" for model in ("recommender", "id_generator") for name, size in SIZES.items()),
    "--config.training.rounds=1",
    "--config.training.recommender_epochs=1",
    "--config.training.recommender_examples_per_epoch=64",
    "--config.training.recommender_batch_size=32",
    "--config.training.id_examples_per_epoch=16",
    "--config.training.id_batch_size=8",
    "--config.training.id_items_per_batch=32",
    "--config.training.warm_start_epochs=1",
    "--config.evaluation.num_beams=10",
    "--config.ids.num_groups=2",
    "--config.ids.max_penalty=1",
    "--config.ids.num_lengths=1",
    "--config.data.max_text_length=32",
]
# The sweeps of docs/sweeps.md have 6 and 20 trials, which are those of tests/launch/test_sweep.py, smaller.
ONE_TRIAL = '''
from idgenrec_jax.sweeps.definition import LogUniform

def sweep():
    return [{"training.recommender_learning_rate": 1e-3}]

def space():
    return {"training.recommender_learning_rate": LogUniform(1e-4, 1e-2)}
'''
# One work of the benchmark: tests/launch/test_benchmark.py runs the others, start_up excepted.
FEW = ["--repeats=1", "--steps=1", "--only=training"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folders and files that the commands name, small."""
    folder = tmp_path_factory.mktemp("readme")
    sample = load_sample()
    kept = 40
    rows = [
        (name, [sample.items[item] for item in sequence if item < kept])
        for name, sequence in zip(sample.users, sample.sequences, strict=True)
    ]
    rows = [(name, items) for name, items in rows if len(items) >= 3][:40]
    for name in ("movielens", "my_tokenizer", "my_t5"):
        (folder / name).mkdir()
    ratings = [
        f"{user},{sample.items.index(item) + 1},5.0,{time}"
        for user, (_, items) in enumerate(rows * 3, 1)
        for time, item in enumerate(dict.fromkeys(items), 1)
    ]
    (folder / "movielens" / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]) + "\n")
    movies = [f'{item + 1},"{sample.item_texts[item][7:40]}",Drama' for item in range(kept)]
    (folder / "movielens" / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    tokenizer = sample_tokenizer()
    tokenizer.save(folder / "my_tokenizer")
    config = T5Config(vocab_size=-(-tokenizer.size // 128) * 128, pad_token_id=tokenizer.pad_id, **SIZES)
    save_t5(T5(config, rngs=nnx.Rngs(0)), folder / "my_t5")
    tokenizer.save(folder / "my_t5")
    (folder / "my_sweep.py").write_text(ONE_TRIAL)
    (folder / "my_prompts.txt").write_text(
        "sequential; seen; bought {history} and then; {target}\nsequential; unseen; after {history}; {target}\n"
    )
    return folder


def run(folder, command):
    words = shlex.split(command)
    if words[:2] == ["python", "compiled/recommend.py"]:
        return subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True)
    assert words[:2] == ["python", "-m"], command
    if words[2] == "launch.train" and "--help" not in words:
        words += SMALL
    if words[2] == "launch.sweep" and "--summary" not in words:
        words += SMALL
        words = ["--trials=1" if word.startswith("--trials=") else word for word in words]
    if words[2] == "launch.benchmark":
        words += SMALL + FEW
        if importlib.util.find_spec("torch") is None:
            words.append("--nopeer")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Minute models run for less time than LLVM takes to optimise them.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_command_of_readme_and_docs_runs(folder):
    products = [command for command in COMMANDS if not command.startswith("pip install")]
    products.insert(0, "python -m launch.train")
    for command in products:
        result = run(folder, command)
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        if command.startswith("python -m launch.prepare_data"):
            write_ids(folder)
    assert "--config.training.rounds" in run(folder, "python -m launch.train --help").stdout
    assert json.loads((folder / "runs/users/results.json").read_text())["protocol"]["user_ids"] == "train_history"
    assert len((folder / "sample_ids.jsonl").read_text().splitlines()) == len(load_sample().items)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for code in scripts():
        words = [sys.executable, "-c", code]
        result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0 and len(result.stdout.splitlines()) == 5, result.stderr
    shutil.rmtree(folder / "runs")


def write_ids(folder):
    """IDs for the items that the preparation kept."""
    rows = [json.loads(line) for line in (folder / "my_data" / "items.jsonl").read_text().splitlines()]
    words = telling_words([f"title: {row['title']}" for row in rows])
    lines = [f"{row['id']} {word} {index}" for index, (row, word) in enumerate(zip(rows, words, strict=True))]
    (folder / "my_ids.txt").write_text("\n".join(lines) + "\n")


def test_ci_uses_the_commands_that_install_and_test():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    shown = [part for command in COMMANDS if command.startswith("pip install") for part in command.split(" && ")]
    assert {part for part in shown if "launch.train" not in part} <= set(script.splitlines())
