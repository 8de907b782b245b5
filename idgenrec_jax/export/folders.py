"""A run as Hugging Face folders: both models, their tokenizer, the IDs, and a card that says how to use them."""

import json
from pathlib import Path

from flax import nnx

from idgenrec_jax import run_files
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.metrics import SPLITS
from idgenrec_jax.export.manifest import is_export_of, write_manifest
from idgenrec_jax.export.model_card import id_generator_card, recommender_card
from idgenrec_jax.export.tokenizer_files import ExportedTokenizer, save_tokenizer
from idgenrec_jax.files import atomic_folder, atomic_writer, expand_home, write_json
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.models.huggingface import SHARD_BYTES, save_t5
from idgenrec_jax.trained_run import RunIds, TrainedRun, evaluation_renderer, load_ids, load_run, load_run_data
from idgenrec_jax.workdir import protocol

ITEM_IDS = "item_ids.jsonl"
_MODELS = ("recommender", "id_generator")
_EXAMPLE_ITEMS = 3


def export_folders(
    workdir: str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the best state of a run to the new folder `output`.

    It holds `recommender` and `id_generator`, each with config.json, model.safetensors (several files of at most
    `shard_bytes` where it is larger) in `dtype` ("float32" or "bfloat16"), tokenizer, generation_config.json and a
    card; item_ids.jsonl; and MANIFEST.json. No device ever holds a whole model for this. The data of the run is not
    needed: where it is there, or `data` says where it has moved, the card's example is its first user's history.

    Raises:
        InputError: `workdir` holds no run or no checkpoint yet, its users' IDs change with every item, `data` is not
            the run's, or `output` cannot be written to or exists and is not an export of this very state, which is
            written anew.
    """
    run = load_run(workdir)
    if run.config.data.user_ids == "prefix":
        raise InputError(
            f"{workdir}: trained with --config.data.user_ids=prefix; the IDs of users change with every item, which a "
            "folder of weights cannot tell; expected a run with another --config.data.user_ids"
        )
    replaces = check_output(run, output, file="recommender/config.json")
    ids = load_ids(run)
    renderer = evaluation_renderer(run, ids)
    history = example_history(run, ids, data)
    targets = [renderer.target(item, 0) for item in range(len(ids.items))]
    longest = {"recommender": max(map(len, targets)), "id_generator": max(map(len, ids.items.tokens)) + 1}
    with atomic_folder(output, replaces=replaces) as folder:
        for name in _MODELS:
            model = nnx.merge(run.graphdefs[name], run.params[name])
            save_t5(model, folder / name, dtype=dtype, shard_bytes=shard_bytes)
            save_tokenizer(run.tokenizer, folder / name)
            generation = {
                "decoder_start_token_id": model.config.decoder_start_token_id,
                "eos_token_id": model.config.eos_token_id,
                "pad_token_id": model.config.pad_token_id,
                "max_new_tokens": longest[name],
            }
            if name == "recommender":
                evaluation = run.config.evaluation
                generation |= {"num_beams": evaluation.num_beams, "length_penalty": evaluation.length_penalty}
                if run.config.over_catalogue:
                    generation["renormalize_logits"] = True
                _note_training(run, folder / name / "config.json")
                exported = ExportedTokenizer(folder / name)
                card = recommender_card(run, ids, renderer, exported, history=history)
            else:
                card = id_generator_card(run)
            write_json(folder / name / "generation_config.json", generation)
            with atomic_writer(folder / name / "README.md") as file:
                file.write(card)
        write_item_ids(ids.items, targets, folder / ITEM_IDS)
        write_manifest(folder, run.workdir, selected=run.selected)


def _note_training(run: TrainedRun, path: Path) -> None:
    """Add to a model's config.json the softmax it was trained with, and whether it reads histories causally."""
    measured = protocol(run.config)
    fields = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, fields | {name: measured[name] for name in ("softmax", "history")})


def check_output(run: TrainedRun, output: str | Path, *, file: str) -> bool:
    """Tell whether `output` holds an earlier export of this state, with `file` in it, that may be written anew.

    Raises:
        InputError: it would take the name of one of the run's own files, or the place of the run itself.
    """
    workdir, output = run.workdir, Path(expand_home(output))
    own = {run_files.CONFIG, run_files.METRICS, run_files.RESULTS, run_files.RANKS, run_files.PROMPTS, run_files.LOCK}
    own |= {run_files.WANDB}
    own |= {run_files.evaluation(split) for split in SPLITS}
    folders = {run_files.TOKENIZER, run_files.IDS, run_files.LATEST_CHECKPOINTS.parts[0], run_files.TENSORBOARD}
    folders |= {Path(run_files.WANDB).stem}
    inside = output.resolve()
    if inside in (workdir.resolve(), *workdir.resolve().parents):
        raise InputError(f"--output={output}: holds the run {workdir} itself; name another folder")
    if workdir.resolve() in inside.parents:
        first = inside.relative_to(workdir.resolve()).parts[0]
        if first in own | folders:
            raise InputError(f"--output={output}: {first} is the run's own in {workdir}; name another folder")
    return is_export_of(output, workdir, selected=run.selected, file=file)


def write_item_ids(table: IdTable, targets: list[list[int]], path: Path) -> None:
    """Write a line an item: its name, its ID, the ID's tokens, and what the recommender writes for it, EOS included."""
    with atomic_writer(path) as file:
        for item, text, tokens, target in zip(table.items, table.texts, table.tokens, targets, strict=True):
            line = {"item": item, "id": text, "tokens": list(tokens), "target_tokens": target}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def example_history(run: TrainedRun, ids: RunIds, data: str | None) -> list[int]:
    """Return the first training items of a user, as numbers in the run's own order; without data the first few items.

    Raises:
        InputError: `data` cannot be read, or has other items than the run.
    """
    try:
        dataset = load_run_data(run, data)
        load_ids(run, dataset)  # fails where these are not the items of the run
    except InputError:
        if data is not None:
            raise
        return list(range(min(_EXAMPLE_ITEMS, len(ids.items))))
    number = {item: index for index, item in enumerate(ids.items.items)}
    sequences = map(dataset.training_sequence, range(len(dataset.users)))
    # There is one: it was trained on.
    return [number[dataset.items[item]] for item in next(sequence for sequence in sequences if len(sequence))]
