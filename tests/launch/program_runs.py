"""What the tests of the programs share: data of 30 items, a minute configuration, programs run as a user runs them.

All subprocesses of a session, whichever worker starts them, share one folder of compiled programs, so that only the
first of them compiles.
"""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 300.0
NUM_ITEMS, NUM_USERS = 30, 40
BRANDS, KINDS, COLOURS = ("Verano", "Solace", "Kesto"), ("grinder", "kettle", "jug", "tamper", "scale"), ("red", "blue")

TINY = {
    **{
        f"{model}.{name}": value
        for model in ("recommender", "id_generator")
        for name, value in {
            "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
        }.items()
    },
    "data.max_text_length": 24,
    "data.max_history": 5,
    "data.id_max_history": 3,
    "ids.num_groups": 3,
    "ids.max_penalty": 2,
    "ids.num_lengths": 1,
    "ids.soft_length": 4,
    "ids.batch_size": 16,
    "training.rounds": 2,
    "training.order": "id_first",
    "training.warm_start_epochs": 2,
    "training.warm_start_batch_size": 16,
    "training.id_epochs": 1,
    "training.id_batch_size": 16,
    "training.id_items_per_batch": 32,
    "training.id_examples_per_epoch": 64,
    "training.id_learning_rate": 1e-2,
    "training.id_measured_examples": 0,
    "training.recommender_epochs": 2,
    "training.recommender_batch_size": 32,
    "training.recommender_learning_rate": 1e-2,
    "training.recommender_average_decay": 0.5,
    "training.recommender_final_rate_fraction": 0.0,
    "training.validate_every_epochs": 0,
    "training.warm_start_learning_rate": 2e-3,
    "training.warm_start_tokens": 7,
    "training.embedding_learning_rate_factor": 10.0,
    "training.query_learning_rate_factor": 1.0,
    "recommender.dropout_rate": 0.1,
    "training.log_every_steps": 3,
    "evaluation.num_beams": 10,
    "evaluation.batch_size": 32,
}  # fmt: skip


def tiny_flags(**overrides):
    """The flags of the minute configuration; `training__rounds=1` overrides `training.rounds`."""
    values = TINY | {name.replace("__", "."): value for name, value in overrides.items()}
    return [f"--config.{name}={value}" for name, value in values.items()]


def write_data(folder, *, blank_items=(), short_users=3):
    """A data folder: each user walks through the catalogue by his own stride, so there is something to learn.

    The first users have long histories with repeats, the last `short_users` fewer than three items.
    """
    folder.mkdir(parents=True)
    rng = random.Random(7)
    items = [f"item{number}" for number in range(NUM_ITEMS)]
    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        for number, item in enumerate(items):
            words = f"{COLOURS[number % 2]} {BRANDS[number // 10]} {KINDS[number // 2 % 5]}"
            fields = {} if number in blank_items else {"title": words, "brand": BRANDS[number // 10]}
            file.write(json.dumps({"id": item} | fields) + "\n")
    with open(folder / "user_sequence.txt", "w", encoding="utf-8") as file:
        for user in range(NUM_USERS):
            length = 1 + user % 2 if user >= NUM_USERS - short_users else 5 + user % 4
            start, stride = rng.randrange(NUM_ITEMS), 1 + user % 2
            walk = [items[(start + stride * step) % NUM_ITEMS] for step in range(length)]
            if user < 5:
                walk = [walk[0], *walk, walk[1]]
            file.write(" ".join([f"user{user}", *walk]) + "\n")
    return folder


def made_once(folder, make):
    """Return `folder`, which `make(folder)` fills for the first worker of the session that asks; others wait for it."""
    with open(folder.with_name(f"{folder.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_name(f"{folder.name}.done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def environment(compiled):
    """The environment of a program: nothing fetched, and compiled programs kept in `compiled`."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


@dataclass(frozen=True)
class Programs:
    """Runs `python -m launch.X` in `folder` with the session's data and tokenizer."""

    folder: Path
    data: Path
    tokenizer: Path
    compiled: Path

    def command(self, program, *flags):
        return [sys.executable, "-m", f"launch.{program}", *map(str, flags)]

    def start(self, program, *flags, cwd=None):
        """Start a program and return the process, whose output is piped."""
        return subprocess.Popen(
            self.command(program, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=cwd or self.folder, env=environment(self.compiled),
        )  # fmt: skip

    def run(self, program, *flags):
        return subprocess.run(
            self.command(program, *flags), capture_output=True, text=True, cwd=self.folder, check=False,
            timeout=DEADLINE, env=environment(self.compiled),
        )  # fmt: skip

    def train_flags(self, workdir, **overrides):
        flags = tiny_flags(**overrides)
        return [f"--workdir={workdir}", f"--data={self.data}", f"--config.data.tokenizer={self.tokenizer}", *flags]

    def train(self, workdir, *more, **overrides):
        """Train to the end and return the finished process."""
        result = self.run("train", *self.train_flags(workdir, **overrides), *more)
        assert result.returncode == 0, result.stderr
        return result


@dataclass(frozen=True)
class FinishedRun:
    """The workdir of an undisturbed run, and what it printed."""

    workdir: Path
    stdout: str
    stderr: str

    @property
    def results(self):
        return json.loads((self.workdir / "results.json").read_text())

    @property
    def records(self):
        return read_records(self.workdir)


def read_records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_seconds(records):
    """The records but for what depends on the machine's speed."""
    timings = ("seconds", "examples_per_second")
    return [{name: value for name, value in record.items() if name not in timings} for record in records]


def assert_same_run(workdir, reference):
    """Metrics, selection, IDs and the log of every step equal those of the undisturbed run, bit for bit."""
    results = json.loads((workdir / "results.json").read_text())
    for block in ("validation", "test", "selected", "example_ids"):
        assert results[block] == reference.results[block], block
    assert without_seconds(read_records(workdir)) == without_seconds(reference.records)
    for path in sorted((reference.workdir / "ids").iterdir()):
        assert (workdir / "ids" / path.name).read_text() == path.read_text(), path.name


def the_error(result):
    """The text of the one error line of a finished process that must have failed as a user's mistake."""
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.rstrip().splitlines()[-1] == errors[0], "nothing follows the error line"
    return errors[0]
