"""Time the work that matters, beside a peer where asked: python -m launch.benchmark [--only=NAME,..] [--peer] ..."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags, logging

from idgenrec_jax.errors import InputError
from idgenrec_jax.launch.command_line import (
    config_from_flags,
    data_from_flags,
    define_config_flags,
    define_path,
    run,
)

WORKS = ("ranking", "exact", "steps", "ids", "training", "one_pass", "id_training", "start_up", "preparation")

_ONLY = flags.DEFINE_list("only", list(WORKS), f"which works, of {', '.join(WORKS)}")
define_path("data", None, "'sample' (the embedded catalogue, the default) or a data folder")
_PEER = flags.DEFINE_bool("peer", False, "time transformers on PyTorch in turns with every work that it can do")
_PEER_PYTHON = define_path(
    "peer_python", sys.executable, "Python with torch and transformers; writing IDs needs one with transformers 4.56"
)
_PEER_COMPILE = flags.DEFINE_bool("peer_compile", True, "on a GPU, have torch.compile compile the peer's training")
_OUTPUT = define_path("output", "benchmark.json", "file for the figures")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed runs of each work, each beside one of the peer's", lower_bound=1)
_USERS = flags.DEFINE_integer("users", 64, "users ranked in a run", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", 512, "items whose IDs are written in a run", lower_bound=1)
_PEER_ITEMS = flags.DEFINE_integer("peer_items", 64, "of these, items whose IDs a peer writes in a run", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 12, "training steps in a run", lower_bound=1)
_PEER_BATCH = flags.DEFINE_integer("peer_batch", 8, "items in a peer's batch of texts", lower_bound=1)
_PEER_ID_BATCH = flags.DEFINE_integer(
    "peer_id_batch", 32, "examples in a batch of the peer's ID phase, where it is not as published", lower_bound=1
)
_PEER_ID_EXAMPLES = flags.DEFINE_integer(
    "peer_id_examples", 64, "of an ID phase's examples, those on which the peer trains in a run", lower_bound=1
)
_LARGE = flags.DEFINE_integer(
    "large_catalogue", 1_000_000, "made-up IDs in the large catalogue of 'steps'", lower_bound=1
)
_REVIEWS = flags.DEFINE_integer("reviews", 1_000_000, "made-up reviews that 'preparation' reads", lower_bound=1)
_REVIEWED = flags.DEFINE_integer("reviewed_items", 100_000, "items that these are about", lower_bound=1)
define_config_flags()


def main() -> None:
    """Run each work in a process of its own, print the table and write the figures."""
    unknown = [name for name in _ONLY.value if name not in WORKS]
    if unknown or not _ONLY.value:
        raise InputError(f"--only={','.join(unknown)}: no such work; expected some of {', '.join(WORKS)}")

    from idgenrec_jax.benchmark.machine import Machine
    from idgenrec_jax.benchmark.work import Result, table
    from idgenrec_jax.files import write_json

    if len(_ONLY.value) == 1:
        report = _measure(_ONLY.value[0])
    else:
        report = {"results": []}
        for name in _ONLY.value:
            # A process each, so that one work's memory is not in the peak of the next.
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder) / "part.json"
                own = ["-m", "idgenrec_jax.launch.benchmark", *sys.argv[1:], f"--only={name}", f"--output={part}"]
                finished = subprocess.run([sys.executable, *own], stdout=subprocess.DEVNULL)
                if finished.returncode:
                    sys.exit(finished.returncode)
                found = json.loads(part.read_text())
            report = {**found, "results": report["results"] + found["results"]}
    results = [Result(**values) for values in report["results"]]
    machine = Machine(**report["machine"])
    print(
        f"{machine.device} of {machine.name}, {machine.cores} cores: {machine.matrix_rate / 1e9:.0f} GFLOP/s in "
        f"{machine.dtype} products, {machine.bandwidth / 1e9:.1f} GB/s\n\n{table(results)}"
    )
    write_json(_OUTPUT.value, report)


def _measure(name: str) -> dict:
    """The figures of one work, measured in this process."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)

    from idgenrec_jax.benchmark.machine import measure_machine
    from idgenrec_jax.benchmark.peer import Peer
    from idgenrec_jax.benchmark.suite import make_works
    from idgenrec_jax.benchmark.work import measure, measure_beside

    config = config_from_flags("sample" if data_from_flags() == "sample" else "small")
    machine = measure_machine(config.recommender.compute_dtype)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {
            "users": _USERS.value,
            "items": _ITEMS.value,
            "peer_items": _PEER_ITEMS.value,
            "steps": _STEPS.value,
            "peer_batch_size": _PEER_BATCH.value,
            "peer_id_batch_size": _PEER_ID_BATCH.value,
            "peer_id_examples": _PEER_ID_EXAMPLES.value,
            "large_catalogue": _LARGE.value,
            "reviews": _REVIEWS.value,
            "reviewed_items": _REVIEWED.value,
        }
        settings = {
            "threads": len(os.sched_getaffinity(0)),
            "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
            "dtype": config.recommender.compute_dtype,
            "compile": _PEER_COMPILE.value and jax.default_backend() != "cpu",
        }
        for number, work in enumerate(make_works(name, config, Path(scratch), sizes, settings)):
            print(f"{work.name} ...", file=sys.stderr, flush=True)
            if work.beside is not None:
                results += measure_beside(work, machine, repeats=_REPEATS.value)
                continue
            if not _PEER.value or work.job is None:
                results.append(measure(work, machine, repeats=_REPEATS.value, peer=None))
                continue
            folder = Path(scratch) / f"job_{number}"
            work.job(folder)
            try:
                peer = Peer(_PEER_PYTHON.value, folder)
            except InputError as error:
                logging.warning("%s is timed without a peer: %s", work.name, error)
                alone = measure(work, machine, repeats=_REPEATS.value, peer=None)
                results.append(dataclasses.replace(alone, note=f"{alone.note}; no peer: {error}"))
                continue
            with peer:
                results.append(measure(work, machine, repeats=_REPEATS.value, peer=peer))
    return {
        "machine": dataclasses.asdict(machine),
        "versions": {"jax": jax.__version__},
        "config": config.to_json(),
        "results": [dataclasses.asdict(result) for result in results],
    }


if __name__ == "__main__":
    run(main)
