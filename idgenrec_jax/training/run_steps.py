"""The step of every kind of phase, made from a run's configuration."""

from collections.abc import Callable
from typing import Any

import optax
from flax import nnx
from jaxtyping import Array, Bool

from idgenrec_jax.config import Config, TrainingConfig
from idgenrec_jax.training.id_terms import IdTerms
from idgenrec_jax.training.losses import supervised_loss
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.phases import ID, RECOMMENDER, WARM_START
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.steps import TrainStep, compiler_options, make_id_step, make_supervised_step


def configured_optimizer(training: TrainingConfig) -> optax.GradientTransformation:
    """Return the optimizer of all phases."""
    return make_optimizer(
        clip_norm=training.gradient_clip,
        weight_decay=training.weight_decay,
        embedding_factor=training.embedding_learning_rate_factor,
        query_factor=training.query_learning_rate_factor,
    )


def id_terms(training: TrainingConfig) -> IdTerms:
    """Return how a run's ID loss differs from the published one."""
    return IdTerms(training.id_straight_through, training.id_leash, training.id_neighbour_weight)


def make_steps(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    id_generator: nnx.GraphDef,
    recommender: nnx.GraphDef,
    no_embedding: Bool[Array, " vocab"],
    places: dict[str, Any],
) -> dict[str, TrainStep]:
    """Return the step of WARM_START, ID and RECOMMENDER phases.

    `places` are the shardings of the states of "id_generator" and "recommender".
    """
    training = config.training

    def supervised_step(graphdef: nnx.GraphDef, name: str, loss: Callable) -> TrainStep:
        return make_supervised_step(
            graphdef,
            optimizer,
            loss=loss,
            accumulation=training.gradient_accumulation,
            average_decay=training.recommender_average_decay,
            state_sharding=places[name],
            compiler_options=compiler_options(getattr(config, name).rematerialise),
        )

    return {
        # The ID generator writes from its whole vocabulary, whatever the recommender may write.
        WARM_START: supervised_step(id_generator, "id_generator", recommender_loss),
        ID: make_id_step(
            id_generator,
            recommender,
            optimizer,
            no_embedding,
            config.ids.soft_length,
            chunks=training.id_chunks,
            terms=id_terms(training),
            state_sharding=places["id_generator"],
            compiler_options=compiler_options(config.id_generator.rematerialise, config.recommender.rematerialise),
        ),
        RECOMMENDER: supervised_step(recommender, "recommender", supervised_loss(training.softmax)),
    }
