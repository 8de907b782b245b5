"""The works of the benchmark, by name, made ready for one configuration."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from idgenrec_jax.benchmark.decoding_works import (
    ALL_TEXTS,
    STATIC,
    TEXTS_OF_256,
    UNCONSTRAINED,
    id_writing,
    search_steps,
)
from idgenrec_jax.benchmark.id_works import id_training
from idgenrec_jax.benchmark.preparation_works import preparation
from idgenrec_jax.benchmark.ranking_works import RANKINGS, exact_ranking, ranking
from idgenrec_jax.benchmark.training_works import ONE_PASS, PROMPT_EACH, one_pass, recommender_training
from idgenrec_jax.benchmark.work import Work
from idgenrec_jax.config import Config
from idgenrec_jax.errors import InputError
from idgenrec_jax.experiment import Experiment, assemble
from idgenrec_jax.ids.schemes import keywords, unique_table
from idgenrec_jax.training.alternation import FIRST_STEP

PUBLISHED_ID_BATCH = 12
"""Examples in a step of the published ID phase, on each of its GPUs (IDGenRec's own command for Beauty)."""


def make_works(
    name: str, config: Config, scratch: Path, sizes: Mapping[str, int], settings: dict[str, Any]
) -> Iterator[Work]:
    """Yield the works called `name`, each made ready when it is asked for.

    `scratch` is a folder for what they write. `sizes`: users, items, peer_items, steps, peer_batch_size,
    peer_id_batch_size, peer_id_examples, large_catalogue, reviews, reviewed_items. `settings` go into the peer's job.
    """
    if name == "start_up":
        yield _start_up("start to first step, nothing compiled yet", scratch, fresh=True)
        yield _start_up("start to first step, compiled before", scratch, fresh=False)
        return
    if name == "preparation":
        yield preparation(scratch, reviews=sizes["reviews"], items=sizes["reviewed_items"])
        return
    if name == "one_pass":
        one, each = (
            _with_ids(config.override(overrides), scratch / folder)
            for overrides, folder in ((ONE_PASS, "one_pass"), (PROMPT_EACH, "prompt_each"))
        )
        yield one_pass(one, each, settings, num_steps=sizes["steps"])
        return
    experiment = _with_ids(config, scratch / "run")
    if name == "ranking":
        for ranked in RANKINGS:
            work = ranking(experiment, settings, users=sizes["users"], name=ranked)
            if work is not None:
                yield work
    elif name == "exact":
        yield exact_ranking(experiment, users=sizes["users"])
    elif name == "steps":
        yield search_steps(experiment, num_items=None, layout=UNCONSTRAINED)
        yield search_steps(experiment, num_items=None, layout="csr")
        yield search_steps(experiment, num_items=None, layout=STATIC)
        try:
            yield search_steps(experiment, num_items=None, layout="dense")
        except InputError as error:
            logging.warning("dense is left out: %s", error)
        yield search_steps(experiment, num_items=sizes["large_catalogue"], layout="csr")
        yield search_steps(experiment, num_items=sizes["large_catalogue"], layout=STATIC)
    elif name == "ids":
        # Group beam search at a batch, and one by one as the published code has it.
        for written, peer_batch_size in itertools.product(
            (ALL_TEXTS, TEXTS_OF_256), dict.fromkeys((sizes["peer_batch_size"], 1))
        ):
            work = id_writing(
                experiment,
                settings,
                num_items=sizes["items"],
                num_peer_items=sizes["peer_items"],
                peer_batch_size=peer_batch_size,
                name=written,
            )
            if work is not None:
                yield work
    elif name == "training":
        yield recommender_training(experiment, settings, num_steps=sizes["steps"])
    else:
        for peer_batch_size, pad_histories in ((PUBLISHED_ID_BATCH, True), (sizes["peer_id_batch_size"], False)):
            yield id_training(
                experiment,
                settings,
                num_steps=sizes["steps"],
                num_peer_examples=sizes["peer_id_examples"],
                peer_batch_size=peer_batch_size,
                pad_histories=pad_histories,
            )


def _with_ids(config: Config, folder: Path) -> Experiment:
    """The experiment with the given IDs or, so that they are of a realistic length without training, keywords."""
    experiment = assemble(config, folder)
    inputs = experiment.inputs
    experiment.ids.table = inputs.given_ids or unique_table(
        keywords(inputs.dataset, inputs.tokenizer, config), inputs.dataset.items, inputs.tokenizer
    )
    return experiment


def _start_up(name: str, scratch: Path, *, fresh: bool) -> Work:
    """The default run from its command to the end of its first training step, imports included."""
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        cache = scratch / (f"cache_{runs}" if fresh else "cache")
        process = subprocess.Popen(
            [sys.executable, "-m", "idgenrec_jax.launch.train", f"--workdir={scratch / f'start_{fresh}_{runs}'}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A cache that the user has named would make the first start a warm one.
            env=os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": ""},
        )
        assert process.stderr is not None  # Popen gives it where it was asked for a pipe.
        found = any(FIRST_STEP in line for line in process.stderr)
        process.kill()
        process.wait()
        if not found:
            raise RuntimeError(f"{name}: the run ended before its first step")

    return Work(name, "start", 1, run)
