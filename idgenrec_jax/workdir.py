"""The folder of a run: what it was made from, and the checks that the same command goes on with the same run."""

import dataclasses
import hashlib
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import explain_write_error, read_json, write_json
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.processes import from_main

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")

# Fields that say where things are, on how many devices, and how often to save, not what is computed; a resumed run may
# differ in them.
_FREE_FIELDS = {
    "data.path",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "training.checkpoint_every_seconds",
    "training.checkpoint_every_steps",
    "training.log_every_steps",
}
_REMEDY = "name another --workdir, or delete this one"


def protocol(config: Config) -> dict[str, Any]:
    """Return how a run's metrics are measured, for its files."""
    return {
        "split": "leave-one-out by time: last item test, the one before validation, the rest training",
        "ranking": "whole catalogue",
        "selection": f"validation {run_files.SELECTION_METRIC}; test is scored once",
        "user_ids": config.data.user_ids,
        "leaks_held_out_items": config.data.user_ids == "published",
        "max_history": config.data.max_history,
        "eval_prompt": config.data.eval_prompt,
        "num_beams": config.evaluation.num_beams,
        "length_penalty": config.evaluation.length_penalty,
    }


def described_run(workdir: Path) -> dict[str, Any]:
    """Return the contents of config.json.

    Raises:
        InputError: the folder holds no run.
    """
    return read_json(workdir / run_files.CONFIG, remedy="expected the --workdir of a run of launch.train")


def named_as_in(workdir: Path, dataset: Dataset) -> Dataset:
    """Return the data set under the name the run knows it by: prompts may hold the name, and folders get renamed."""
    if not (workdir / run_files.CONFIG).exists():
        return dataset
    return dataclasses.replace(dataset, name=described_run(workdir)["data"]["name"])


def fingerprint(config: Config, dataset: Dataset, text_tokens: Sequence[Sequence[int]]) -> str:
    """Return a hash of all that training reads: items, sequences, their tokens, prompts and given IDs."""
    digest = hashlib.sha256()
    for name, text, tokens in zip(dataset.items, dataset.item_texts, text_tokens, strict=True):
        digest.update(f"{name}\t{text}\t{list(tokens)}\n".encode())
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        digest.update(f"{user}\t".encode() + sequence.tobytes())
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
    }
    from_main(lambda: _make(workdir, config, tokenizer, data, models))
    _check(workdir / run_files.CONFIG, config, data)
    from_main(lambda: _clear_leftovers(workdir))


def _make(
    workdir: Path, config: Config, tokenizer: Tokenizer, data: dict[str, Any], models: dict[str, T5Config]
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
        "models": {name: dataclasses.asdict(model) for name, model in models.items()},
        "protocol": protocol(config),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    write_json(workdir / run_files.CONFIG, description)


def _clear_leftovers(workdir: Path) -> None:
    """Delete the files that a killed run was writing."""
    for leftover in [*workdir.glob(".*.tmp"), *(workdir / run_files.IDS).glob(".*.tmp")]:
        leftover.unlink()


def _check(path: Path, config: Config, data: dict[str, Any]) -> None:
    """Compare a run's config.json with what it is to go on with."""
    found, defaults = described_run(path.parent), Config().to_json()
    for section, fields in config.to_json().items():
        for name, value in fields.items():
            # A field that the run's version did not have yet is as its default.
            before = found["config"].get(section, {}).get(name, defaults[section].get(name))
            if before != value and f"{section}.{name}" not in _FREE_FIELDS:
                raise InputError(
                    f"{path}: made with --config.{section}.{name}={before}, now it is {value}; {_REMEDY}"
                )
    if found["data"]["fingerprint"] != data["fingerprint"]:
        sizes = ", ".join(f"{found['data'][name]} {name}" for name in ("users", "items", "interactions"))
        raise InputError(
            f"{path}: made with other data, tokenizer, prompts or IDs ({found['data']['name']}: {sizes}); {_REMEDY}, "
            "or give what it was made with"
        )
