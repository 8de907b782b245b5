"""Trains, writes IDs and ranks on one device and on meshes of eight, in one process; writes down what it measured.

Run by test_sharding.py with JAX_NUM_CPU_DEVICES=8, as `python sharding_program.py FOLDER`; FOLDER/results.json is the
outcome. The one device is the first of the eight. Batches are the same on all meshes: their rows are a multiple of
eight, and dropout masks follow from the position in the batch.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from idgenrec_jax.config import Config, MeshConfig
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.recommender_batches import recommender_epoch, training_shape
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.data.templates import default_templates
from idgenrec_jax.evaluation.catalogue_trie import searched_catalogue
from idgenrec_jax.evaluation.ranker import Ranker
from idgenrec_jax.experiment import assemble, make_epochs
from idgenrec_jax.ids.generation import IdGeneration, item_prompts
from idgenrec_jax.ids.table import save_table
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.presets import preset
from idgenrec_jax.sharding import batch_devices, batch_sharding, make_mesh, parameter_shardings, replicated
from idgenrec_jax.training.alternation import Alternation, Validation
from idgenrec_jax.training.catalogue_loss import catalogue_loss
from idgenrec_jax.training.choice_softmax import choice_table
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.soft_ids import tokens_without_embedding
from idgenrec_jax.training.steps import create_train_state, make_id_step, make_supervised_step, seed_key

STEPS = 20
# The configuration's own. Ten times the ID phase's, and weights drawn twice as wide, were tried: after some steps the
# rounding of another order of summation changes a greedy token, and with it the loss by a hundredth.
RECOMMENDER_LEARNING_RATE, ID_LEARNING_RATE = 1e-3, 1e-4
NUM_ITEMS, NUM_USERS, SEED, ID_LENGTH, TEXT_LENGTH = 32, 32, 0, 4, 32
MESHES = {
    "one": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 8),
    "all": (2, 2, 2),
}
SIZES = {"vocab_size": 1408, "d_model": 32, "d_kv": 4, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1}

TOKENIZER = sample_tokenizer()
NO_EMBEDDING = jax.device_put(np.isin(np.arange(SIZES["vocab_size"]), sorted(TOKENIZER.punctuation_ids)))
OPTIMIZER = make_optimizer()


def dataset():
    """A small catalogue of the sample's items, and users who walk through it."""
    sample, rng = load_sample(), np.random.default_rng(SEED)
    walks = [(rng.integers(NUM_ITEMS) + np.arange(4 + user % 5)) % NUM_ITEMS for user in range(NUM_USERS)]
    return Dataset(
        "walks",
        tuple(f"user{user}" for user in range(NUM_USERS)),
        sample.items[:NUM_ITEMS],
        sample.item_texts[:NUM_ITEMS],
        tuple(walk.astype(np.int32) for walk in walks),
    )


def model(**values):
    """A T5 as (graphdef, parameters on the host)."""
    config = T5Config(num_heads=8, **SIZES, **values)
    graphdef, params = nnx.split(T5(config, rngs=nnx.Rngs(SEED)), nnx.Param)
    return graphdef, jax.device_get(params)


def recommender_batches(renderer):
    """The first batches of recommender phases, numpy trees."""
    shared = {"seed": SEED, "batch_size": 16}
    shape = training_shape(renderer, row_multiple=8, **shared)
    epochs = [recommender_epoch(renderer, epoch=epoch, num_examples=0, shape=shape, **shared) for epoch in range(STEPS)]
    return [epoch.batch(step) for epoch in epochs for step in range(len(epoch))][:STEPS]


def batches(renderer):
    """The first batches of both phases, those of causal windows over the catalogue, and its choices; for every mesh."""
    causal = replace(renderer, is_causal=True, over_catalogue=True)
    texts = item_prompts(renderer.dataset.item_texts, renderer.dataset.items, TOKENIZER, max_length=TEXT_LENGTH)
    shared = {"seed": SEED, "id_length": ID_LENGTH}
    shape = id_shape(renderer, texts, batch_size=16, items_per_batch=24, row_multiple=8, **shared)
    epochs = [IdBatches(renderer, texts, epoch=epoch, num_examples=0, shape=shape, **shared) for epoch in range(STEPS)]
    id_batches = [epoch.batch(step) for epoch in epochs for step in range(len(epoch))][:STEPS]
    return recommender_batches(renderer), id_batches, recommender_batches(causal), choice_table(causal.choices)


class OnMesh:
    """Both models on one mesh, their steps, their ID generation and their ranking."""

    def __init__(self, sizes, id_generator, recommender):
        count = int(np.prod(sizes))
        self.mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:count])
        self.id_generator_graphdef, self.recommender_graphdef = id_generator[0], recommender[0]
        self.id_generator, self.recommender = self._state(id_generator[1]), self._state(recommender[1])

    def _state(self, params):
        placed = jax.device_put(params, parameter_shardings(self.mesh, params))

        def create(params):
            return create_train_state(params, OPTIMIZER)

        places = parameter_shardings(self.mesh, jax.eval_shape(create, placed))
        return jax.jit(create, out_shardings=places)(placed)

    def put(self, value):
        return jax.device_put(value, replicated(self.mesh))

    def train(self, step, state, batches, learning_rate, *read_only, choices=None):
        """The losses, the last state, and whether every buffer of every earlier state was given up."""
        rate, key = self.put(np.float32(learning_rate)), self.put(seed_key(SEED))
        losses, deleted = [], True
        with jax.transfer_guard("disallow"):
            for batch in batches:
                batch = jax.device_put(batch, batch_sharding(self.mesh))
                before = jax.tree.leaves(state)
                state, metrics = step(state, *read_only, batch, rate, key, choices)
                deleted = deleted and all(leaf.is_deleted() for leaf in before)
                losses.append(metrics["loss"])
            return [float(loss) for loss in jax.device_get(losses)], state, deleted

    def train_both(self, recommender_batches, id_batches, causal_batches, choices):
        places = [jax.tree.map(lambda leaf: leaf.sharding, state) for state in (self.id_generator, self.recommender)]
        step = make_supervised_step(
            self.recommender_graphdef, OPTIMIZER, loss=catalogue_loss, state_sharding=places[1]
        )
        state = jax.tree.map(jnp.copy, self.recommender)
        causal = self.train(step, state, causal_batches, RECOMMENDER_LEARNING_RATE, choices=self.put(choices))
        step = make_supervised_step(self.recommender_graphdef, OPTIMIZER, state_sharding=places[1])
        recommender = self.train(step, self.recommender, recommender_batches, RECOMMENDER_LEARNING_RATE)
        step = make_id_step(
            self.id_generator_graphdef, self.recommender_graphdef, OPTIMIZER, NO_EMBEDDING, ID_LENGTH,
            state_sharding=places[0],
        )  # fmt: skip
        id_generator = self.train(step, self.id_generator, id_batches, ID_LEARNING_RATE, recommender[1].params)
        self.recommender, self.id_generator = recommender[1], id_generator[1]
        return {
            "recommender losses": recommender[0],
            "id losses": id_generator[0],
            "causal losses": causal[0],
            "donated": recommender[2] and id_generator[2] and causal[2],
            "moved": moved([self.id_generator, self.recommender, causal[1]], [*places, places[1]]),
        }

    def ids(self, data):
        generation = IdGeneration(
            self.id_generator_graphdef, TOKENIZER, num_groups=3, penalties=(1.0, 2.0), min_lengths=(1,), batch_size=16,
            batch_divisors=(1,), max_text_length=TEXT_LENGTH, length_buckets=(TEXT_LENGTH,), fallback="suffix",
            batch_sharding=batch_sharding(self.mesh),
        )  # fmt: skip
        with jax.transfer_guard("disallow"):
            return generation.generate(self.id_generator.params, data.items, data.item_texts)

    def rankings(self, renderer):
        """Over the vocabulary; over the catalogue with causal prompts and without seen items, both searches."""
        over_catalogue = {
            "training.softmax": "catalogue", "data.history": "causal", "evaluation.seen_items": "remove"
        }  # fmt: skip
        kinds = {
            "": {"training.softmax": "vocabulary", "data.history": "whole"},
            "catalogue ": over_catalogue,
            "exact ": over_catalogue | {"evaluation.search": "exact"},
        }
        found = {}
        for kind, fields in kinds.items():
            config = Config().override({"evaluation.num_beams": 10, "evaluation.batch_size": 16} | fields)
            ranker = Ranker(
                self.recommender_graphdef, config,
                place_batch=lambda batch: jax.device_put(batch, batch_sharding(self.mesh)),
            )  # fmt: skip
            with jax.transfer_guard("disallow"):
                catalogue = searched_catalogue(
                    config.evaluation.search, renderer, vocab_size=SIZES["vocab_size"],
                    pad_token_id=TOKENIZER.pad_id, layout="auto", over_catalogue=config.over_catalogue,
                )  # fmt: skip
                prompts = replace(renderer, over_catalogue=config.over_catalogue, is_causal=config.is_causal)
                ranking = ranker.rank(self.recommender.params, prompts, catalogue, "test", title="test")
            values = ranking.items.tolist(), ranking.scores.tolist(), ranking.loss
            found |= dict(zip([f"{kind}items", f"{kind}scores", f"{kind}ranking loss"], values, strict=True))
        return found


def moved(tree, places):
    """The arrays that are not where `places` says."""
    return [
        jax.tree_util.keystr(path)
        for (path, leaf), place in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(places), strict=True
        )
        if not leaf.sharding.is_equivalent_to(place, leaf.ndim)
    ]


def bytes_per_device(tree):
    """The bytes of all arrays of a tree that each device holds, and those of one whole copy."""
    leaves = jax.tree.leaves(tree)
    held = {device: 0 for device in leaves[0].sharding.device_set}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return sorted(held.values()), sum(leaf.nbytes for leaf in leaves)


def whole_on_a_device(tree):
    """The arrays, but scalars, of which one device holds all."""
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if leaf.ndim and any(shard.data.shape == leaf.shape for shard in leaf.addressable_shards)
    ]


def run_of_a_phase(folder, data, ids):
    """A run's own loop on eight fsdp devices, with given IDs: a recommender phase, its validation, its checkpoints."""
    (folder / "data").mkdir(parents=True)
    lines = [json.dumps({"id": item, "title": text}) for item, text in zip(data.items, data.item_texts, strict=True)]
    (folder / "data" / "items.jsonl").write_text("\n".join(lines) + "\n")
    lines = [
        " ".join([user, *(data.items[item] for item in walk)])
        for user, walk in zip(data.users, data.sequences, strict=True)
    ]
    (folder / "data" / "user_sequence.txt").write_text("\n".join(lines) + "\n")
    TOKENIZER.save(folder / "tokenizer")
    save_table(ids, folder / "ids.jsonl")
    sizes = {"num_heads": 8, **{name: value for name, value in SIZES.items() if name != "vocab_size"}}
    config = preset("sample").override(
        {f"{section}.{name}": value for section in ("recommender", "id_generator") for name, value in sizes.items()}
        | {"data.path": str(folder / "data"), "data.tokenizer": str(folder / "tokenizer"), "data.max_history": 5}
        | {"mesh.data": 1, "mesh.fsdp": 8, "ids.table": str(folder / "ids.jsonl"), "evaluation.num_beams": 10}
        | {"training.rounds": 1, "training.id_epochs": 0, "training.recommender_epochs": 2}
        | {"training.recommender_batch_size": 16, "training.checkpoint_every_steps": 2}
        | {"training.recommender_average_decay": 0.5}
    )
    experiment = assemble(config, folder / "run")

    def validate(params, renderer, title):
        ranking = experiment.ranker.rank(params, renderer, experiment.trie(renderer), "validation", title=title)
        return Validation(ranking.loss, ranking.metrics(), ranking.ranks().tolist())

    inputs, vocab_size = experiment.inputs, experiment.recommender.config.vocab_size
    epochs = make_epochs(config, experiment.ids, inputs, row_multiple=batch_devices(experiment.mesh))
    no_embedding = tokens_without_embedding(inputs.tokenizer.punctuation_ids, vocab_size)
    alternation = Alternation(
        config, experiment.ids, epochs, workdir=folder / "run",
        id_generator=(experiment.id_generator.graphdef, experiment.id_generator.params),
        recommender=(experiment.recommender.graphdef, experiment.recommender.params),
        no_embedding=no_embedding, given_ids=None, pretrained_id_generator=False, validate=validate,
        validation_loss=lambda params, renderer: experiment.ranker.loss(params, renderer, "validation"),
        should_stop=lambda: False, place_batch=experiment.place_batch,
    )  # fmt: skip
    before = alternation.state.arrays()
    places = jax.tree.map(lambda leaf: leaf.sharding, before)
    with jax.transfer_guard("disallow"):
        best = alternation.run()
    after = alternation.state.arrays()
    return {
        "steps": alternation.state.global_step,
        "best step": best["step"],
        "donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(before["recommender"])),
        "moved": moved(after, places),
        "whole": whole_on_a_device(after),
    }


def main(folder):
    data = dataset()
    id_generator = model(feed_forward="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0)
    recommender = model(dropout_rate=0.1)
    templates = tuple(
        PromptTokens(template, tokenizer=TOKENIZER, dataset_name="walks")
        for template in default_templates(with_user_ids=False)
    )
    results, renderer, prepared = {"devices": len(jax.devices())}, None, None
    for name, sizes in MESHES.items():
        on_mesh = OnMesh(sizes, id_generator, recommender)
        first = on_mesh.ids(data)
        if renderer is None:
            renderer = PromptRenderer(data, templates, first.tokens, None, TOKENIZER.eos_id, 5, 128)
            prepared = batches(renderer)
            results["run"] = run_of_a_phase(folder, data, first)
        found = {"first ids": first.texts} | on_mesh.train_both(*prepared)
        found["ids"] = on_mesh.ids(data).texts
        found |= on_mesh.rankings(replace(renderer, templates=templates[:1]))
        states = (on_mesh.id_generator, on_mesh.recommender)
        found["bytes"], found["all bytes"] = bytes_per_device(states)
        found["whole"] = whole_on_a_device(states)
        results[name] = found
    return results


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "results.json").write_text(json.dumps(main(folder)), encoding="utf-8")
