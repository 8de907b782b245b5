"""The folder of a run: what it was made from, who trains in it, and that the same command goes on with the same run.

What a run reads is compared by its contents: files and folders may move between two calls.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from absl import logging

from idgenrec_jax import run_files
from idgenrec_jax.config import Config, path_fields
from idgenrec_jax.data.dataset import LEAVE_ONE_OUT, Dataset
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import clear_leftovers, explain_write_error, read_json, write_json
from idgenrec_jax.inputs import size_to_train
from idgenrec_jax.locks import NO_LOCKS, holder, lock_file, note_holder
from idgenrec_jax.models.huggingface import resolve_folder
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.models.tensor_files import weight_files
from idgenrec_jax.processes import from_main
from idgenrec_jax.switches import numeric_switches

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")

# Paths, and what a run that was stopped by it is told to change: what was computed before is as it would have been.
_NOTED_FIELDS = (*path_fields(), "ids.fallback", "evaluation.trie_layout")
# Nothing that is computed depends on where things are (their contents are compared), on how many devices there are, or
# on how often the run is saved.
_FREE_FIELDS = {
    *_NOTED_FIELDS,
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "training.checkpoint_every_seconds",
    "training.checkpoint_every_steps",
    "training.log_every_steps",
}
_MODELS = ("recommender", "id_generator")
# Of a large file of weights so many pieces, evenly spread, are compared: training changes all of them.
_PIECES, _PIECE_BYTES = 256, 2**16
_RESTORE = "restore the file, or delete the workdir and train again"
_REMEDY = "name another --workdir, or delete this one"


def protocol(config: Config, split: str = LEAVE_ONE_OUT) -> dict[str, Any]:
    """Return how a run's metrics are measured, for its files; `split` says how its data are split, in words."""
    return {
        "split": split,
        "ranking": "whole catalogue",
        "selection": f"validation {run_files.SELECTION_METRIC}; test is scored once",
        "user_ids": config.data.user_ids,
        "leaks_held_out_items": config.data.user_ids == "published",
        "max_history": config.data.max_history,
        "eval_prompt": config.data.eval_prompt,
        "history": "causal" if config.is_causal else "whole",
        "softmax": config.training.softmax,
        "search": config.evaluation.search,
        "seen_items": config.evaluation.seen_items,
        "num_beams": config.evaluation.num_beams,
        "length_penalty": config.evaluation.length_penalty,
    }


def described_run(workdir: Path) -> dict[str, Any]:
    """Return the contents of config.json, checked as far as this package reads them.

    Raises:
        InputError: the folder holds no run, or its config.json was edited or is another version's.
    """
    path = workdir / run_files.CONFIG
    if not path.exists():
        return read_json(path, remedy="expected the --workdir of a run of launch.train")
    fields: dict[str, Any] = {"config": dict, "data": dict, "models": dict}
    fields |= {f"models.{name}": dict for name in _MODELS}
    fields |= {"data.name": str, "data.fingerprint": str, "data.users": int, "data.items": int}
    fields |= {"data.interactions": int} | {f"config.{name}.folder": str for name in _MODELS}
    fields |= {"protocol": dict, "packages": dict}
    found = read_json(path, remedy=_RESTORE, fields=fields)
    # Runs of earlier versions have fewer sections, no switches and no digests of weights.
    there = [f"config.{section}" for section in found["config"]]
    if "switches" in found:
        there.append("switches")
    if "weights" in found["data"]:
        there.append("data.weights")
    read_json(path, remedy=_RESTORE, fields=dict.fromkeys(there, dict))
    try:
        for name in _MODELS:
            model = T5Config(**found["models"][name])
            for field, kind in get_type_hints(T5Config).items():
                value = getattr(model, field)
                if type(value) is not kind and (kind, type(value)) != (float, int):
                    raise TypeError(f"{field} is {value!r:.60}, expected {kind.__name__}")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: models.{name}: {error}; {_RESTORE}") from error
    return found


def described_results(workdir: Path) -> dict[str, Any]:
    """Return the contents of results.json, checked as far as this package reads them.

    Raises:
        InputError: the run is not finished, or its results.json was edited.
    """
    path = workdir / run_files.RESULTS
    blocks = ("validation", "test", "popularity.validation", "popularity.test")
    fields: dict[str, Any] = dict.fromkeys(blocks, dict)
    fields |= {"selected.step": int, "seconds": (int, float), "example_ids": list}
    found = read_json(path, remedy=_RESTORE, fields=fields)
    rows = {"validation": found["validation"], "test": found["test"]}
    rows |= {f"popularity.{split}": found["popularity"][split] for split in ("validation", "test")}
    metrics = [f"{title}.{name}" for title, row in rows.items() for name in row]
    read_json(path, remedy=_RESTORE, fields=dict.fromkeys(metrics, (int, float)))
    for example in found["example_ids"]:
        if not isinstance(example, dict) or not all(isinstance(example.get(name), str) for name in ("id", "text")):
            raise InputError(f"{path}: example_ids has {example!r:.60}, expected objects with id and text; {_RESTORE}")
    return found


class RunLock:
    """Keeps a run's folder to one process that trains; those that only read it need no lock."""

    def __init__(self, workdir: Path):
        """Of the run in `workdir`; nothing is held yet."""
        self._workdir = workdir
        self._descriptor: int | None = None

    def take(self) -> None:
        """Hold the folder, which is made where it is missing, until `release` or the end of the process.

        Of several processes process 0 holds it. Where the file system has no locks, a warning says so.

        Raises:
            InputError: another process holds it, or it cannot be written to.
        """
        from_main(self._take)

    def _take(self) -> None:
        path = self._workdir / run_files.LOCK
        if self._descriptor is not None:
            return
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._descriptor = lock_file(path, wait=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise explain_write_error(error, path) from error
            logging.warning(
                "%s: the file system has no locks (%s); see to it that no other process trains in this folder",
                path,
                error.strerror,
            )
            return
        if self._descriptor is None:
            raise InputError(
                f"{self._workdir}: {holder(path)} trains this run; wait for it or stop it, or name another --workdir"
            )
        note_holder(self._descriptor, os.getpid())

    def release(self) -> None:
        """Let others have the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def named_as_in(workdir: Path, dataset: Dataset) -> Dataset:
    """Return the data set under the name the run knows it by: prompts may hold the name, and folders get renamed."""
    if not (workdir / run_files.CONFIG).exists():
        return dataset
    return dataclasses.replace(dataset, name=described_run(workdir)["data"]["name"])


def trained_tokenizer(workdir: Path, config: Config) -> Tokenizer | None:
    """Return the tokenizer that the run in `workdir` has trained, where this configuration would train such a one.

    A run goes on with it, whatever another version of the trainer would make of the same texts.

    Raises:
        InputError: the folder's config.json or tokenizer is damaged.
    """

    def stored() -> str:
        size = size_to_train(config)
        if size is None or not (workdir / run_files.CONFIG).exists():
            return ""
        found, defaults = described_run(workdir)["config"], Config().to_json()
        fields = [name.split(".") for name in ("data.path", "data.tokenizer", *(f"{name}.folder" for name in _MODELS))]
        made_with = Config().override(
            {f"{section}.{name}": found.get(section, {}).get(name, defaults[section][name]) for section, name in fields}
        )
        return Tokenizer.load(workdir / run_files.TOKENIZER).to_json() if size_to_train(made_with) == size else ""

    text = from_main(stored)
    return Tokenizer.from_json(text) if text else None


def fingerprint(config: Config, dataset: Dataset, text_tokens: Sequence[Sequence[int]]) -> str:
    """Return a hash of all that training reads: items, sequences, their split, tokens, prompts and given IDs."""
    digest = hashlib.sha256()
    for name, text, tokens in zip(dataset.items, dataset.item_texts, text_tokens, strict=True):
        digest.update(f"{name}\t{text}\t{list(tokens)}\n".encode())
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        digest.update(f"{user}\t".encode() + sequence.tobytes())
    if dataset.boundaries is not None:
        digest.update(b"boundaries" + dataset.boundaries.astype(np.int64).tobytes())
    for path in (config.data.prompts, config.ids.table):
        digest.update(Path(path).read_bytes() if path else b"")
    return digest.hexdigest()


def claim(
    workdir: Path,
    config: Config,
    dataset: Dataset,
    tokenizer: Tokenizer,
    *,
    text_tokens: Sequence[Sequence[int]],
    models: dict[str, T5Config],
) -> None:
    """Make `workdir` the folder of this run, or check that it already is.

    A new one gets config.json, the tokenizer and the user's prompts, so that it can be used without them. Process 0
    makes it, and every other process then checks its own configuration and data against it.

    Raises:
        InputError: it is the folder of another configuration or of other data, or it cannot be written to.
    """
    data = {
        "name": dataset.name,
        "users": len(dataset.users),
        "items": len(dataset.items),
        "interactions": dataset.num_interactions,
        "fingerprint": fingerprint(config, dataset, text_tokens),
        "weights": {name: _weights_digest(getattr(config, name).folder, name) for name in _MODELS},
    }
    described = {name: dataclasses.asdict(model) for name, model in models.items()}
    from_main(lambda: _make(workdir, config, tokenizer, data, described, dataset.split))
    _check(workdir, config, tokenizer, data, described)
    from_main(lambda: _note_fields(workdir, config))
    from_main(lambda: _clear_leftovers(workdir))


def _make(
    workdir: Path, config: Config, tokenizer: Tokenizer, data: dict[str, Any], models: Mapping[str, Any], split: str
) -> None:
    """Fill the folder where it is not a run's yet; config.json comes last."""
    if (workdir / run_files.CONFIG).exists():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if config.data.prompts:
            shutil.copyfile(config.data.prompts, workdir / run_files.PROMPTS)
    except OSError as error:
        raise explain_write_error(error, workdir) from error
    tokenizer.save(workdir / run_files.TOKENIZER)
    description = {
        "config": config.to_json(),
        "data": data,
        "models": models,
        "protocol": protocol(config, split),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "switches": numeric_switches(),
    }
    write_json(workdir / run_files.CONFIG, description)


def _clear_leftovers(workdir: Path) -> None:
    """Delete what killed programs, this one or an export, left half written."""
    for folder in (workdir, workdir / run_files.IDS):
        clear_leftovers(folder)
    for folder in (run_files.LATEST_CHECKPOINTS, run_files.BEST_CHECKPOINTS):
        for leftover in (workdir / folder).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _check(
    workdir: Path, config: Config, tokenizer: Tokenizer, data: dict[str, Any], models: Mapping[str, Any]
) -> None:
    """Compare a run's config.json and tokenizer with what it is to go on with."""
    found, defaults = described_run(workdir), Config().to_json()
    path = workdir / run_files.CONFIG
    for section, fields in config.to_json().items():
        for name, value in fields.items():
            # A field that the run's version did not have yet is as its default.
            before = found["config"].get(section, {}).get(name, defaults[section].get(name))
            if before != value and f"{section}.{name}" not in _FREE_FIELDS:
                raise InputError(f"{path}: made with --config.{section}.{name}={before}, now it is {value}; {_REMEDY}")
    for name, value in numeric_switches().items():
        before = found.get("switches", {}).get(name, value)
        if before != value:
            raise InputError(
                f"{path}: made with {name.upper()}={before}, now it is {value}; set it as it was, or {_REMEDY}"
            )
    if found["data"]["fingerprint"] != data["fingerprint"]:
        sizes = ", ".join(f"{found['data'][name]} {name}" for name in ("users", "items", "interactions"))
        raise InputError(
            f"{path}: made with other data, tokenizer, prompts or IDs ({found['data']['name']}: {sizes}); {_REMEDY}, "
            "or give what it was made with: --data, --config.data.tokenizer, --config.data.prompts, --config.ids.table"
        )
    if not tokenizer.equals(Tokenizer.load(workdir / run_files.TOKENIZER)):
        raise InputError(
            f"{workdir / run_files.TOKENIZER}: made with another tokenizer; {_REMEDY}, or give this one with "
            "--config.data.tokenizer"
        )
    weights = found["data"].get("weights", {})
    for name in _MODELS:
        folder, digest = getattr(config, name).folder, data["weights"][name]
        # Runs of earlier versions kept the path of weights, but no digest of them.
        same = weights[name] == digest if name in weights else bool(found["config"][name]["folder"]) == bool(folder)
        if not same or T5Config(**found["models"][name]) != T5Config(**models[name]):
            raise InputError(
                f"{path}: made with other weights, now --config.{name}.folder={folder}; {_REMEDY}, or give those it "
                "was made with"
            )


def _note_fields(workdir: Path, config: Config) -> None:
    """Keep these fields as they are now, for the programs that read the run."""
    path = workdir / run_files.CONFIG
    found, values = described_run(workdir), config.to_json()
    before = json.dumps(found["config"])
    for section, name in (field.split(".") for field in _NOTED_FIELDS):
        found["config"].setdefault(section, {})[name] = values[section][name]
    if json.dumps(found["config"]) != before:
        write_json(path, found)


def _weights_digest(folder_or_name: str, model: str) -> str:
    """A hash of the weights in a folder, of pieces of them where they are large; empty where there are none."""
    if not folder_or_name:
        return ""
    flag = f"--config.{model}.folder"
    folder = resolve_folder(folder_or_name, flag=flag, random_flag=f"{flag}= (empty)")
    digest = hashlib.sha256()
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(_PIECE_BYTES, size // _PIECES)):
                file.seek(start)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()
