"""Where else a run's records go: event files of TensorBoard, and Weights & Biases.

A writer is one class here and one line in the table. It is opened with the records that metrics.jsonl keeps when a run
starts or goes on, and is then given every further one; process 0 alone has writers.
"""

import contextlib
import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.errors import InputError, look_up
from idgenrec_jax.files import explain_write_error, read_json, write_json

Record = dict[str, Any]
SPLITS = ("train_step", "train", "ids", "validation")
"""The splits of records, in the order in which those of one step are written."""
PROJECT = "idgenrec-jax"
"""The project in Weights & Biases, where WANDB_PROJECT names no other."""


class RecordWriter(Protocol):
    """Takes every record of a run that metrics.jsonl has not held before."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Hand over all that was taken."""


class LibraryWriter(RecordWriter, Protocol):
    """A class of record writers that a flag of its name turns on."""

    flag_help: str
    library: str

    def __init__(self, kept: Sequence[Record], workdir: Path, config: Config):
        """Open it for a run in `workdir`, given the records that metrics.jsonl keeps."""


OpenWriter = Callable[[Sequence[Record]], RecordWriter]


class TensorBoardWriter:
    """Event files of TensorBoard under the workdir: a scalar SPLIT/NAME for every number of a record.

    They are written anew from the kept records when a run goes on: event files cannot be shortened, and what a killed
    run had written beyond its checkpoint would be there twice.
    """

    flag_help = "write the records as event files in WORKDIR/tensorboard, too (pip install tensorboardX)"
    library = "tensorboardX"

    def __init__(self, kept: Sequence[Record], workdir: Path, config: Config):
        """Replace the event files of an earlier sitting."""
        from tensorboardX import SummaryWriter

        folder = workdir / run_files.TENSORBOARD
        # Times of events are those of training: a pause between two sittings is left out.
        self._start = time.time() - (kept[-1]["seconds"] if kept else 0.0)
        self._path = folder
        with self._explained():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            # A TensorBoard that is looking on drops what it has read, from step 0.
            self._writer = SummaryWriter(str(folder), purge_step=0)
            for record in kept:
                self.write(record)

    def write(self, record: Record) -> None:
        """Add a record's numbers as scalars."""
        with self._explained():
            when = self._start + record["seconds"]
            for name, value in _numbers(record).items():
                # It knows no "@" in names.
                self._writer.add_scalar(name.replace("@", "_"), value, record["step"], walltime=when)

    def close(self) -> None:
        """Write what is in memory."""
        with self._explained():
            self._writer.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain_write_error(error, self._path) from error


class WandbWriter:
    """A run in Weights & Biases, of which the workdir keeps the name and the last record that was sent.

    It takes no record back: what was sent before a resume is not sent again. It would be the same.
    """

    flag_help = "write the records to Weights & Biases, too; WANDB_MODE=offline needs no network (pip install wandb)"
    library = "wandb"

    def __init__(self, kept: Sequence[Record], workdir: Path, config: Config):
        """Open the run of this workdir."""
        import wandb

        self._path = workdir / run_files.WANDB
        fields = {"id": str, "sent": list}
        known: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "sent": []}
        if self._path.exists():
            known = read_json(self._path, remedy="delete it to send the run anew", fields=fields)
        self._id = known["id"]
        # Step and split of the last record that was sent.
        self._sent = tuple(known["sent"])
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                name=workdir.name,
                id=self._id,
                resume="allow",
                dir=str(workdir),
                config=config.to_json(),
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(
                f"--wandb: {reason}; expected an account (wandb login), or WANDB_MODE=offline in the environment"
            ) from error
        for record in kept:
            self.write(record)

    def write(self, record: Record) -> None:
        """Send a record's numbers, unless they were sent before."""
        place = record["step"], SPLITS.index(record["split"])
        if place <= self._sent:
            return
        self._sent = place
        write_json(self._path, {"id": self._id, "sent": place})
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        """Hand over to the library's own process, which goes on until all is sent."""
        self._run.finish()


WRITERS: dict[str, type[LibraryWriter]] = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}


def check_writers(names: Sequence[str]) -> None:
    """Check that the libraries of these writers are there.

    Raises:
        InputError: one is missing, or there is no such writer.
    """
    for name in names:
        library = look_up(WRITERS, name, "log_to").library
        if importlib.util.find_spec(library) is None:
            raise InputError(f"--{name}: {library} is not installed; pip install {library}")


def writer_makers(names: Sequence[str], workdir: Path, config: Config) -> list[OpenWriter]:
    """Return what opens these writers for a run in `workdir`, given its kept records."""

    def opener(writer: Callable[[Sequence[Record], Path, Config], RecordWriter]) -> OpenWriter:
        return lambda kept: writer(kept, workdir, config)

    return [opener(WRITERS[name]) for name in names]


def _numbers(record: Record) -> dict[str, int | float]:
    """Return the numbers of a record but its step, each under the split it belongs to."""
    return {
        f"{record['split']}/{name}": value
        for name, value in record.items()
        if isinstance(value, int | float) and name != "step"
    }
