"""The best state of a run, read from its workdir alone: weights, tokenizer, prompts and IDs.

A run may be in training meanwhile. It is only read here; a checkpoint that training replaces while it is being read is
given up for the newer one.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from idgenrec_jax import run_files
from idgenrec_jax.config import Config, MeshConfig, config_from_json
from idgenrec_jax.data.dataset import LEAVE_ONE_OUT, Dataset
from idgenrec_jax.data.lines import parse_json, read_lines
from idgenrec_jax.data.packing import round_up
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.sample import load_data
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.catalogue_trie import catalogue_trie, searched_catalogue
from idgenrec_jax.files import expand_home
from idgenrec_jax.ids.prefix_ids import PrefixIds, load_prefix_ids
from idgenrec_jax.ids.table import IdTable, load_table
from idgenrec_jax.inputs import load_prompts
from idgenrec_jax.models.create import abstract_model
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.sharding import batch_devices, check_heads, make_mesh, place_shapes
from idgenrec_jax.training.checkpoints import Checkpoints
from idgenrec_jax.training.selection import BEST_RANKS, SELECTED
from idgenrec_jax.workdir import described_results, described_run

_ATTEMPTS = 5
_ID_LINE = '{"item": ..., "id": ..., "tokens": ...}'
_ID_FILE = "it is a file of the run; restore it, or train again in another workdir"


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The best state of a run; `params` and `graphdefs` have the keys "id_generator" and "recommender".

    `selected` tells which state it is. `data_name` is the data set's name, which prompts may hold, `num_items` the size
    of its catalogue, and `split` says in words how targets were held out.
    """

    workdir: Path
    config: Config
    tokenizer: Tokenizer
    mesh: Mesh
    graphdefs: dict[str, nnx.GraphDef]
    params: dict[str, Any]
    vocab_size: int
    selected: dict[str, Any]
    data_name: str
    num_items: int
    split: str = LEAVE_ONE_OUT


@dataclasses.dataclass(frozen=True)
class RunIds:
    """The IDs that belong to the best state of a run, and the prompt it is evaluated with.

    `users` is None where prompts have no user IDs, or have them by prefix: `prefix_users`, of one data set alone.
    """

    items: IdTable
    users: IdTable | None
    template: PromptTokens
    prefix_users: PrefixIds | None = None


def load_run(workdir: str | Path) -> TrainedRun:
    """Load the best checkpoint of a run, onto the devices that are here; they need not be those of training.

    Raises:
        InputError: `workdir` holds no run, no checkpoint yet, or its best one is damaged.
    """
    workdir = Path(expand_home(workdir))
    described = described_run(workdir)
    try:
        config = config_from_json(described["config"])
    except InputError as error:
        raise InputError(f"{workdir}/config.json: written by another version of this package; {error}") from error
    if config.data.prompts:
        config = config.override({"data.prompts": str(workdir / run_files.PROMPTS)})
    models = {name: T5Config(**described["models"][name]) for name in run_files.CHECKPOINT_NAMES}
    try:
        mesh, graphdefs, shapes = _place(config.mesh, models)
    except InputError as error:
        # The other fault that may be found, JAX's switches, is raised again.
        mesh, graphdefs, shapes = _place(MeshConfig(), models)
        logging.warning("%s: not for the devices here (%s); they split its batches instead", workdir, error)
    batch_size = round_up(config.evaluation.batch_size, batch_devices(mesh))
    config = config.override({"evaluation.batch_size": batch_size})
    best = Checkpoints(workdir / run_files.BEST_CHECKPOINTS, keep=2)
    like = {key: shapes[name] for name, key in run_files.CHECKPOINT_NAMES.items()}
    meta, saved = _read_best(workdir, best, like)
    return TrainedRun(
        workdir=workdir,
        config=config,
        tokenizer=Tokenizer.load(workdir / run_files.TOKENIZER),
        mesh=mesh,
        graphdefs=graphdefs,
        params={name: saved[key] for name, key in run_files.CHECKPOINT_NAMES.items()},
        vocab_size=described["models"]["recommender"]["vocab_size"],
        selected={name: value for name, value in meta.items() if name != BEST_RANKS},
        data_name=described["data"]["name"],
        num_items=described["data"]["items"],
        split=described["protocol"].get("split", LEAVE_ONE_OUT),
    )


def load_ids(run: TrainedRun, dataset: Dataset | None = None) -> RunIds:
    """Load the IDs of a run's best state, in the order of its catalogue or, where given, of `dataset`.

    Raises:
        InputError: the files of the run are damaged, or `dataset` has other items or users than the run.
    """
    id_round = run.selected["id_round"]
    template = load_prompts(run.config.data, run.tokenizer, run.data_name).evaluation

    def load(path: Path, names: tuple[str, ...] | None) -> IdTable:
        return load_table(path, _names_in(path) if names is None else names, run.tokenizer)

    users = prefix_users = None
    if run.config.data.user_ids == "prefix":
        if dataset is not None:
            prefix_users = load_prefix_ids(run.workdir / run_files.user_ids(id_round), dataset)
    elif run.config.data.user_ids != "none":
        users = load(run.workdir / run_files.user_ids(id_round), None if dataset is None else dataset.users)
    path = run.workdir / run_files.item_ids(id_round)
    items = load(path, None if dataset is None else dataset.items)
    if len(items) != run.num_items:
        raise InputError(f"{path}: {len(items)} items, but the run has {run.num_items}; {_ID_FILE}")
    return RunIds(items, users, template, prefix_users)


def load_run_data(run: TrainedRun, data: str | None = None) -> Dataset:
    """Load the data that a run was trained on, from the folder `data` where it is no longer where it was.

    Raises:
        InputError: the data cannot be read.
    """
    path = expand_home(data or run.config.data.path)
    if data is None and path != "sample" and not Path(path).is_dir():
        raise InputError(
            f"{path}: no such folder, but {run.workdir} was trained on it; where it has moved, name the new place "
            "(--data=FOLDER, in Python data=)"
        )
    return dataclasses.replace(load_data(path), name=run.data_name)


def evaluation_renderer(run: TrainedRun, ids: RunIds, dataset: Dataset | None = None) -> PromptRenderer:
    """Return what prompts are written from, under the template of evaluation.

    Without a `dataset` it knows the items alone, which is enough for the prompt of any history.
    """
    catalogue = Dataset(run.data_name, (), ids.items.items, ("",) * len(ids.items), ())
    return PromptRenderer(
        dataset=dataset or catalogue,
        templates=(ids.template,),
        item_ids=ids.items.tokens,
        user_ids=ids.prefix_users if ids.users is None else ids.users.tokens,
        user_ids_by_prefix=ids.prefix_users is not None,
        eos_id=run.tokenizer.eos_id,
        max_history=run.config.data.max_history,
        max_prompt_length=run.config.data.max_prompt_length,
        over_catalogue=run.config.over_catalogue,
        is_causal=run.config.is_causal,
    )


def evaluation_trie(run: TrainedRun, renderer: PromptRenderer) -> Trie:
    """Return the trie of the IDs that `renderer` holds, as the run's recommender writes them.

    Raises:
        InputError: two items have the same target.
    """
    return catalogue_trie(
        renderer,
        vocab_size=run.vocab_size,
        pad_token_id=run.tokenizer.pad_id,
        layout=run.config.evaluation.trie_layout,
        over_catalogue=run.config.over_catalogue,
    )


def evaluation_catalogue(run: TrainedRun, renderer: PromptRenderer, search: str) -> Trie | CataloguePlan:
    """Return what the ranker needs of the IDs that `renderer` holds: for "beam" their trie, for "exact" their plan.

    Raises:
        InputError: two items have the same target.
    """
    return searched_catalogue(
        search,
        renderer,
        vocab_size=run.vocab_size,
        pad_token_id=run.tokenizer.pad_id,
        layout=run.config.evaluation.trie_layout,
        over_catalogue=run.config.over_catalogue,
    )


def _place(
    config: MeshConfig, models: Mapping[str, T5Config]
) -> tuple[Mesh, dict[str, nnx.GraphDef], dict[str, Any]]:
    """The mesh of the devices here, and of each model its graph and the shapes and shardings of its parameters."""
    mesh = make_mesh(config)
    graphdefs, shapes = {}, {}
    for name, t5_config in models.items():
        check_heads(mesh, t5_config.num_heads, name)
        graphdefs[name], abstract = abstract_model(t5_config)
        shapes[name] = place_shapes(mesh, abstract)
    return mesh, graphdefs, shapes


def _read_best(workdir: Path, best: Checkpoints, like: Any) -> tuple[dict[str, Any], Any]:
    """The description and the arrays of the best checkpoint, or of a newer one where it is replaced meanwhile."""
    folder = workdir / run_files.BEST_CHECKPOINTS
    for _ in range(_ATTEMPTS):
        number = _best_number(workdir, best)
        try:
            return best.meta(number, required=SELECTED), best.restore(number, like)
        except InputError:
            # One that is whole is not being replaced: the fault is its own. Several processes would not fail alike, and
            # would wait for each other for ever.
            if jax.process_count() > 1 or _is_whole(best, number):
                raise
        logging.warning("%s: a checkpoint was replaced while it was read; reading the newest", folder)
    raise InputError(
        f"{folder}: not read in {_ATTEMPTS} attempts, a checkpoint was replaced each time; if training goes on there, "
        "run the same command again"
    )


def _is_whole(best: Checkpoints, number: int) -> bool:
    try:
        return best.require(number) == number
    except InputError:
        return False


def _best_number(workdir: Path, best: Checkpoints) -> int:
    number = best.newest(remedy="restore one of them, or train again in another --workdir")
    if number is None:
        place = workdir / run_files.BEST_CHECKPOINTS
        raise InputError(f"{place}: no checkpoint yet; run launch.train until its first validation")
    if not (workdir / run_files.RESULTS).exists():
        return number
    return best.require(described_results(workdir)["selected"]["step"])


def _names_in(path: Path) -> list[str]:
    """The items or users that a file of IDs lists, in its order."""
    names = []
    for number, line in read_lines(path, _ID_FILE):
        row = parse_json(line, f"{path}:{number}", _ID_FILE)
        if not isinstance(row, dict) or not isinstance(row.get("item"), str):
            raise InputError(f"{path}:{number}: expected {_ID_LINE}; {_ID_FILE}")
        names.append(row["item"])
    return names
