"""A run as Hugging Face folders: both models, their tokenizer, the IDs, and a card that says how to use them."""

import json
from pathlib import Path

from flax import nnx

from idgenrec_jax.export.manifest import write_manifest
from idgenrec_jax.export.model_card import id_generator_card, recommender_card
from idgenrec_jax.files import atomic_folder, atomic_writer, write_json
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.models.huggingface import SHARD_BYTES, save_t5
from idgenrec_jax.recommender import load_run, load_run_ids

ITEM_IDS = "item_ids.jsonl"
_MODELS = ("recommender", "id_generator")


def export_folders(
    workdir: str | Path, output: str | Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the best state of a run to the new folder `output`.

    It holds `recommender` and `id_generator`, each with config.json, model.safetensors (several files of at most
    `shard_bytes` where it is larger) in `dtype` ("float32" or "bfloat16"), tokenizer, generation_config.json and a
    card; item_ids.jsonl; and MANIFEST.json. No device ever holds a whole model for this.

    Raises:
        InputError: `workdir` holds no run or no checkpoint yet, or `output` exists or cannot be written to.
    """
    workdir = Path(workdir)
    run = load_run(workdir)
    config, _, ids = load_run_ids(run, workdir)
    renderer = ids.renderer(max_history=config.data.max_history, evaluation=True)
    targets = [renderer.target(item, 0) for item in range(len(ids.table))]
    cards = {"recommender": recommender_card(run, ids, workdir), "id_generator": id_generator_card(run, workdir)}
    longest = {"recommender": max(map(len, targets)), "id_generator": max(map(len, ids.table.tokens)) + 1}
    with atomic_folder(output) as folder:
        for name in _MODELS:
            model = nnx.merge(run.graphdefs[name], run.params[name])
            save_t5(model, folder / name, dtype=dtype, shard_bytes=shard_bytes)
            run.tokenizer.save(folder / name)
            generation = {
                "decoder_start_token_id": model.config.decoder_start_token_id,
                "eos_token_id": model.config.eos_token_id,
                "pad_token_id": model.config.pad_token_id,
                "max_new_tokens": longest[name],
            }
            if name == "recommender":
                evaluation = config.evaluation
                generation |= {"num_beams": evaluation.num_beams, "length_penalty": evaluation.length_penalty}
            write_json(folder / name / "generation_config.json", generation)
            with atomic_writer(folder / name / "README.md") as file:
                file.write(cards[name])
        write_item_ids(ids, targets, folder / ITEM_IDS)
        write_manifest(folder, workdir, selected=run.selected)


def write_item_ids(ids: RoundIds, targets: list[list[int]], path: Path) -> None:
    """Write a line an item: its name, its ID, the ID's tokens, and what the recommender writes for it, EOS included."""
    table = ids.table
    with atomic_writer(path) as file:
        for item, text, tokens, target in zip(table.items, table.texts, table.tokens, targets, strict=True):
            line = {"item": item, "id": text, "tokens": list(tokens), "target_tokens": target}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
