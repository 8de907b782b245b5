"""The PyTorch + transformers side of the benchmark, a process of its own: `PYTHON peer_worker.py JOB_DIR`.

It needs torch, transformers and numpy only, so that any interpreter may run it; so do its siblings peer_*.py, which
are imported from its own folder. JOB_DIR holds job.json (kind, threads, device, dtype and the kind's own fields),
inputs.npz (ragged rows as NAME_tokens and NAME_lengths) and T5 folders in Hugging Face format, `recommender` and
`id_generator`.

One JSON object a line goes either way. The worker loads everything and says {"ready": true, ...}; then it answers
    {"command": "outputs"}  {"written": true}: JOB_DIR/outputs.npz holds what is to be compared
    {"command": "run"}      {"seconds": wall time of doing the work once, "units": how much was done}
    {"command": "batch_size", "sizes": [..]}
                            {"batch_size": the fastest, used from then on, "rates": units a second of each}
    {"command": "peak"}     {"peak_bytes": of this process, "device_peak_bytes": of the GPU, null on the CPU}
    {"command": "quit"}     nothing, and exits with 0, as at the end of the input.
Batch sizes are tried by "constrained_beam" and "recommender_training", each on the same units.
Whatever goes wrong is answered with {"error": one line}; then the worker exits with 1.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Models come from folders; nothing is ever fetched.
os.environ["HF_HUB_OFFLINE"] = "1"

try:
    import numpy as np
    import torch
    import transformers
    from peer_decoding import ConstrainedBeam, DiverseBeam
    from peer_job import Job, JobError, one_line
    from peer_training import IdTraining, RecommenderTraining
    from process_memory import process_peak_bytes
except ImportError as error:
    way_out = "install torch, transformers and numpy there, or name another interpreter with --peer_python"
    print(json.dumps({"error": f"{sys.executable}: {error}; {way_out}"}), flush=True)
    raise SystemExit(1) from error

KINDS = {
    "constrained_beam": ConstrainedBeam,
    "diverse_beam": DiverseBeam,
    "recommender_training": RecommenderTraining,
    "id_training": IdTraining,
}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays so that `path` exists only when complete."""
    temporary = path.with_name("outputs.tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]  # the stub takes every name for allow_pickle
    os.replace(temporary, path)


def _peak(device: torch.device) -> dict[str, int | None]:
    """The peak memory of this process and of the GPU, in bytes."""
    on_device = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"peak_bytes": process_peak_bytes(), "device_peak_bytes": on_device}


def _timed(run: Callable[[], int], device: torch.device) -> dict[str, Any]:
    """Wall seconds of a call, and the units of work that it returns."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    units = run()
    synchronize()
    return {"seconds": time.perf_counter() - start, "units": units}


def _fastest_batch_size(work: Any, sizes: list[int], device: torch.device) -> dict[str, Any]:
    """The batch size with the highest rate on the units of the largest, and all rates; 0 where memory did not do."""
    rates = []
    for number, size in enumerate(sizes):
        try:
            if number == 0 or device.type == "cuda":
                work.trial(size, size)
            found = _timed(partial(work.trial, size, max(sizes)), device)
            rates.append(found["units"] / found["seconds"])
        except torch.OutOfMemoryError:
            rates.append(0.0)
    return {"batch_size": sizes[rates.index(max(rates))], "rates": rates}


def serve(folder: Path, answer: Any) -> None:
    """Load the job in `folder` and answer the commands on standard input until `quit` or their end."""
    job = Job(folder)
    if job["kind"] not in KINDS:
        raise JobError(f"{folder / 'job.json'}: kind is {job['kind']!r}, expected one of {', '.join(KINDS)}")
    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    work = KINDS[job["kind"]](job)
    answer({"ready": True, "torch": torch.__version__, "transformers": transformers.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        command = request.get("command")
        if command == "outputs":
            torch.set_float32_matmul_precision("highest")
            _save(folder / "outputs.npz", work.outputs())
            # What is timed is float32 as JAX has it on a GPU, which rounds the inputs of products.
            torch.set_float32_matmul_precision("high" if job.device.type == "cuda" else "highest")
            answer({"written": True})
        elif command == "run":
            answer(_timed(work.run, job.device))
        elif command == "batch_size":
            found = _fastest_batch_size(work, request["sizes"], job.device)
            job["batch_size"] = found["batch_size"]
            answer(found)
        elif command == "peak":
            answer(_peak(job.device))
        elif command == "quit":
            return
        else:
            raise JobError(f"standard input: command is {command!r}, expected outputs, run, batch_size, peak or quit")


def main(arguments: list[str]) -> int:
    """Serve the job in the folder that is the one argument; return the exit status."""
    # Libraries print to standard output too: they get standard error, the answers the only way to the real one.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        if len(arguments) != 1:
            raise JobError(f"found {len(arguments)} arguments, expected one; usage: peer_worker.py JOB_DIR")
        serve(Path(arguments[0]), answer)
    except JobError as error:
        answer({"error": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{one_line(error)}; see the traceback on the worker's standard error"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
