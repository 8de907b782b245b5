"""The other side of a comparison: transformers on PyTorch in a process of its own, asked for one run at a time."""

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import write_json
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5

WORKER = Path(__file__).with_name("peer_worker.py")
FLAG = "--peer_python"


def differences(renderer: PromptRenderer) -> tuple[str, ...]:
    """Return in what the recommender of `renderer` is not the peer's, a plain T5, in words."""
    found = []
    if renderer.over_catalogue:
        found.append("our softmax is over the catalogue, the peer's over the vocabulary")
    if renderer.is_causal:
        found.append("our histories are causal, the peer's are not")
    return tuple(found)


def write_job(
    folder: Path,
    job: Mapping[str, Any],
    *,
    models: Mapping[str, tuple[nnx.GraphDef, Any]],
    ragged: Mapping[str, Sequence[Sequence[int] | np.ndarray]],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write what a worker needs into `folder`: job.json, inputs.npz and the models as Hugging Face folders.

    `ragged` rows are stored as NAME_tokens (concatenated) and NAME_lengths, both int32; `models` are (graphdef,
    params).
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = dict(arrays or {})
    for name, rows in ragged.items():
        inputs[f"{name}_lengths"] = np.asarray([len(row) for row in rows], np.int32)
        inputs[f"{name}_tokens"] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]  # the stub takes every name for allow_pickle
    for name, (graphdef, params) in models.items():
        model = nnx.merge(graphdef, params)
        if not isinstance(model, T5):
            raise TypeError(f"{name}: found {type(model).__name__}, expected a T5")
        save_t5(model, folder / name)
    write_json(folder / "job.json", dict(job))


class Peer:
    """A running worker; a context manager that ends it.

    Raises:
        InputError: the interpreter cannot do the work, in the worker's own words.
    """

    def __init__(self, python: str, folder: Path):
        """Start `python` on the job in `folder` and wait until its models are loaded."""
        self._folder, self._python = folder, python
        try:
            with (folder / "worker.log").open("w") as log:
                self._process = subprocess.Popen(
                    [python, str(WORKER), str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        except OSError as error:
            raise InputError(f"{FLAG}={python}: cannot be started ({error.strerror}); name a Python") from error
        # Popen gives both where it was asked for pipes.
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        self.versions = self._answer()

    def __enter__(self) -> "Peer":
        """Return the peer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        self._process.wait(timeout=60)

    def outputs(self) -> dict[str, np.ndarray]:
        """Return what the peer computes from the inputs, to be compared before anything is timed."""
        self._ask("outputs")
        with np.load(self._folder / "outputs.npz") as arrays:
            return dict(arrays)

    def run(self) -> tuple[float, float]:
        """Do the work once and return (seconds, units of work done)."""
        answer = self._ask("run")
        return float(answer["seconds"]), float(answer["units"])

    def choose_batch_size(self, sizes: Sequence[int]) -> str:
        """Have the peer use the fastest of these batch sizes from now on; return in words which that is."""
        answer = self._ask("batch_size", sizes=list(sizes))
        rates = ", ".join(f"{size}: {rate:.3g}/s" for size, rate in zip(sizes, answer["rates"], strict=True))
        return f"the peer's batch is {answer['batch_size']} ({rates})"

    def peak_bytes(self) -> int:
        """Return the most memory that the worker has held so far: the accelerator's where it has one."""
        answer = self._ask("peak")
        return int(answer["device_peak_bytes"] or answer["peak_bytes"])

    def _ask(self, command: str, **fields: Any) -> dict[str, Any]:
        # Of a worker that has ended, the end of its answers tells.
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(json.dumps({"command": command, **fields}) + "\n")
            self._commands.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            log = (self._folder / "worker.log").read_text().strip().splitlines()
            raise InputError(
                f"{FLAG}={self._python}: the worker ended without an answer"
                f"{': ' + log[-1] if log else ''}; expected a Python with torch and transformers"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(f"{FLAG}={self._python}: {answer['error']}")
        return answer
