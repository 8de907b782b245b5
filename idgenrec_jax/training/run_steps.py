"""The steps of a run's phases, made from its configuration."""

from typing import Any

import optax
from flax import nnx
from jaxtyping import Array, Bool

from idgenrec_jax.config import Config, TrainingConfig
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.steps import (
    IdStep,
    RecommenderStep,
    compiler_options,
    make_id_step,
    make_recommender_step,
)


def configured_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """Return the optimizer of all phases."""
    return make_optimizer(
        clip_norm=training.gradient_clip,
        weight_decay=training.weight_decay,
        embedding_factor=training.embedding_learning_rate_factor,
    )


def make_steps(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    id_generator: nnx.GraphDef,
    recommender: nnx.GraphDef,
    no_embedding: Bool[Array, " vocab"],
    places: dict[str, Any],
) -> tuple[RecommenderStep, IdStep, RecommenderStep]:
    """Return the steps of the warm start, of ID phases and of recommender phases.

    `places` are the shardings of the states of "id_generator" and "recommender".
    """
    rematerialise = config.id_generator.rematerialise, config.recommender.rematerialise
    warm_start, recommend = (
        make_recommender_step(
            graphdef,
            optimizer,
            accumulation=config.training.gradient_accumulation,
            state_sharding=places[name],
            compiler_options=compiler_options(layers),
        )
        for name, graphdef, layers in zip(
            ("id_generator", "recommender"), (id_generator, recommender), rematerialise, strict=True
        )
    )
    write = make_id_step(
        id_generator,
        recommender,
        optimizer,
        no_embedding,
        config.ids.soft_length,
        chunks=config.training.id_chunks,
        state_sharding=places["id_generator"],
        compiler_options=compiler_options(*rematerialise),
    )
    return warm_start, write, recommend
