"""The recommend function of a run (encoder, constrained beam search, trie, weights) as one file, by way of jax.export.

It searches with beams, whatever search the run was measured with.

The file holds StableHLO, which JAX, also one up to six months newer, compiles for the platform it runs on; nothing of
this package is needed.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.ranker import Ranker
from idgenrec_jax.export.folders import ITEM_IDS, check_output, write_item_ids
from idgenrec_jax.export.manifest import write_manifest
from idgenrec_jax.files import atomic_folder, write_json
from idgenrec_jax.recommender import longest_prompt
from idgenrec_jax.trained_run import evaluation_renderer, evaluation_trie, load_ids, load_run, load_run_data

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PROGRAM, PROMPT = "recommend.stablehlo", "prompt.json"
MOST_SEEN = 128
"""Items of a history that the search leaves out where the run leaves out seen items."""
# Copied as it is: it uses nothing of this package.
_SCRIPT = Path(__file__).with_name("recommend.py")
# A serialised program is one flatbuffer, whose offsets have 31 bits.
_MOST_BYTES = 2**31 - 2**20


def export_program(
    workdir: str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    batch_size: int = 1,
    platforms: Sequence[str] = ("cpu",),
    most_seen: int = MOST_SEEN,
) -> None:
    """Write the recommend function of a run's best state to the new folder `output`.

    recommend.stablehlo maps prompt tokens, int32 [batch_size, length], and the mask of what is real, bool of the same
    shape, to items (int32, numbers of lines in item_ids.jsonl, -1: none) and scores (float32), best first, both
    [batch_size, beams]. Where the run reads histories causally, `prompt_items` comes next, int32 of the same shape, and
    where it leaves out seen items `seen`, int32 [batch_size, most_seen at most] (see `evaluation.ranker.PromptBatch`).
    recommend.py beside it is a script that calls it, prompt.json says what it takes and how a prompt is put together.
    The data of the run is not needed; a folder `data` is checked to have the run's items.

    Raises:
        InputError: `workdir` holds no run or no checkpoint yet, the run has user IDs, a platform is unknown, the
            program is larger than its format allows, or `output` cannot be written to or exists and is not an export
            of this very state, which is written anew.
    """
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise InputError(f"--platforms={','.join(platforms)}: expected some of {', '.join(PLATFORMS)}")
    run = load_run(workdir)
    config = run.config
    replaces = check_output(run, output, file=PROGRAM)
    ids = load_ids(run)
    if data is not None:
        load_ids(run, load_run_data(run, data))
    renderer = evaluation_renderer(run, ids)
    if config.data.user_ids != "none":
        raise InputError(
            f"{workdir}: trained with --config.data.user_ids={config.data.user_ids}, which new histories have not; "
            "expected a run with user IDs none"
        )
    if config.evaluation.search == "exact":
        logging.warning("%s: its metrics are of exact search; the exported function searches with beams", workdir)
    ranker = Ranker(run.graphdefs["recommender"], config)
    trie = evaluation_trie(run, renderer)
    # On the host: weights and trie become constants of the program, whatever mesh they were on.
    weights = jax.device_get(run.params["recommender"])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    if size > _MOST_BYTES:
        raise InputError(
            f"{workdir}: the recommender has {size:,} bytes of weights, one file can hold {_MOST_BYTES:,}; "
            "expected a smaller model, or export it with --format=huggingface"
        )
    shape = batch_size, longest_prompt(renderer)
    inputs = {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32), "mask": jax.ShapeDtypeStruct(shape, jnp.bool_)}
    if config.is_causal:
        inputs["prompt_items"] = jax.ShapeDtypeStruct(shape, jnp.int32)
    if config.evaluation.seen_items == "remove":
        inputs["seen"] = jax.ShapeDtypeStruct((batch_size, min(most_seen, len(ids.items))), jnp.int32)

    def recommend(*arrays):
        tokens, mask, *more = arrays
        return ranker.traced_search(weights, tokens, mask, trie, **dict(zip(list(inputs)[2:], more, strict=True)))

    exported = jax.export.export(jax.jit(recommend), platforms=list(platforms))(*inputs.values())
    (template,) = renderer.templates
    with atomic_folder(output, replaces=replaces) as folder:
        _write_bytes(folder / PROGRAM, bytes(exported.serialize()))
        prompt = {
            "inputs": list(inputs),
            "pieces": template.pieces,
            "separator": template.separator,
            "eos": renderer.eos_id,
            "max_history": renderer.max_history,
            "max_length": renderer.max_prompt_length,
        }
        write_json(folder / PROMPT, prompt)
        write_item_ids(ids.items, [renderer.target(item, 0) for item in range(len(ids.items))], folder / ITEM_IDS)
        shutil.copyfile(_SCRIPT, folder / _SCRIPT.name)
        write_manifest(folder, run.workdir, selected=run.selected)


def _write_bytes(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
