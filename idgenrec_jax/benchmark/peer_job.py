"""A job of the peer, read from its folder (see peer_worker.py); needs torch, transformers and numpy only."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class JobError(Exception):
    """A job that cannot be done here; the message is one line with what was found and the way out."""


class Job:
    """job.json's fields by name, the arrays of inputs.npz, and what follows from the device and the dtype."""

    def __init__(self, folder: Path):
        """Read the folder; JobError names the file or field that is missing or wrong."""
        self.folder = folder
        try:
            self._fields = json.loads((folder / "job.json").read_text(encoding="utf-8"))
            with np.load(folder / "inputs.npz") as arrays:
                self._arrays = dict(arrays)
        except (OSError, ValueError) as error:
            raise JobError(f"{folder}: not a job ({one_line(error)}); write job.json and inputs.npz there") from error
        if self["dtype"] not in DTYPES:
            raise JobError(f"{folder / 'job.json'}: dtype is {self['dtype']!r}, expected one of {', '.join(DTYPES)}")
        if self["device"] not in ("cpu", "cuda"):
            raise JobError(f"{folder / 'job.json'}: device is {self['device']!r}, expected cpu or cuda")
        if self["device"] == "cuda" and not torch.cuda.is_available():
            raise JobError(f"torch {torch.__version__} sees no GPU; name another interpreter with --peer_python")
        self.device = torch.device(self["device"])
        self.dtype = DTYPES[self["dtype"]]

    def __getitem__(self, name: str) -> Any:
        """Return a field of job.json."""
        if name not in self._fields:
            raise JobError(f"{self.folder / 'job.json'}: field {name} is missing; write it")
        return self._fields[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Change a field for the rest of this process."""
        self._fields[name] = value

    def get(self, name: str, default: Any) -> Any:
        """Return a field of job.json that may be left out."""
        return self._fields.get(name, default)

    def array(self, name: str) -> np.ndarray:
        """Return an array of inputs.npz."""
        if name not in self._arrays:
            raise JobError(f"{self.folder / 'inputs.npz'}: array {name} is missing; write it")
        return self._arrays[name]

    def rows(self, name: str, values: str = "tokens") -> list[np.ndarray]:
        """Return the ragged rows NAME_VALUES, of the lengths NAME_lengths."""
        return np.split(self.array(f"{name}_{values}"), np.cumsum(self.array(f"{name}_lengths"))[:-1])

    def load(self, name: str, **config: Any) -> torch.nn.Module:
        """Return the T5 in the folder `name` in float32 on the device, without dropout; `config` replaces fields."""
        if not (self.folder / name / "config.json").is_file():
            raise JobError(f"{self.folder / name}: no config.json; put a T5 in Hugging Face format there")
        model = transformers.T5ForConditionalGeneration.from_pretrained(self.folder / name, **config)
        # The stub of `to` is that of a function, which takes the model as well.
        return model.to(self.device, torch.float32).eval()  # type: ignore[arg-type]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which parameters stay float32 and products are computed in the job's dtype."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def pad(self, rows: Sequence[np.ndarray], fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows padded on the right to the longest, and 1 for what is real: int64 [rows, longest], on the device.

        Padding is `fill`.
        """
        lengths = np.array([len(row) for row in rows])
        is_real = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(is_real.shape, fill, np.int64)
        padded[is_real] = np.concatenate(rows)
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(is_real).long().to(self.device)


def batches(rows: Any, batch_size: int) -> list[Any]:
    """Return a list or an array in parts of `batch_size`, the last one shorter."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def one_line(error: BaseException) -> str:
    """Return an error's type and message without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
