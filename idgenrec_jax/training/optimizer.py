"""AdamW and the learning-rate schedule."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

CLIP_NORM = 1.0
WEIGHT_DECAY = 0.01


def decay_mask(params: PyTree) -> PyTree:
    """Return a tree of booleans like `params`: False for the scales of layer norms, recognised by their path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path).lower(), params)


def embedding_mask(params: PyTree) -> PyTree:
    """Return a tree of booleans like `params`: True for the input and output embeddings of a T5, by their path."""

    def is_embedding(path: tuple, _: Array) -> bool:
        return any(str(getattr(key, "key", key)) in ("shared", "lm_head") for key in path)

    return jax.tree_util.tree_map_with_path(is_embedding, params)


def query_mask(params: PyTree) -> PyTree:
    """Return a tree of booleans like `params`: True for the query kernels of attention, by their path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(str(getattr(key, "key", key)) == "query" for key in path), params
    )


def make_optimizer(
    *,
    clip_norm: float = CLIP_NORM,
    weight_decay: float = WEIGHT_DECAY,
    embedding_factor: float = 1.0,
    query_factor: float = 1.0,
) -> optax.GradientTransformation:
    """Return AdamW *without* its learning rate: clip by global norm, Adam, decoupled weight decay except on norms.

    The rate is given to each `apply_gradients`, so that the optimizer's state holds no schedule and a resumed run
    needs none. `clip_norm` is the largest global gradient norm, 0: any; `weight_decay` is per unit of learning rate.
    `embedding_factor` multiplies the rate of the embedding tables: T5 draws them with a standard deviation of 1, most
    kernels with d_model**-0.5, so that a rate that suits kernels moves random embeddings hardly at all. `query_factor`
    multiplies that of the query kernels: T5 draws them with (d_model * d_kv)**-0.5, in place of a division of scores.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.masked(optax.scale(embedding_factor), embedding_mask),
        optax.masked(optax.scale(query_factor), query_mask),
    )


def apply_gradients(
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    optimizer_state: PyTree,
    params: PyTree,
    learning_rate: Float[Array, ""] | float,
) -> tuple[PyTree, PyTree]:
    """Return the parameters after one step of `-learning_rate` times the optimizer's update, and its new state."""
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    rate = jnp.asarray(learning_rate, jnp.float32)
    params = jax.tree.map(lambda value, update: value - (rate * update).astype(value.dtype), params, updates)
    return params, optimizer_state


def moving_average(average: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """Return the exponential moving average of parameters after one more step; `step` is their number before it.

    The decay rises from a tenth to `decay`, so that the random weights of the beginning are soon forgotten.
    """
    rate = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (rate * (new - old)).astype(old.dtype), average, params)


def warmup_linear_decay(
    progress: float, peak: float, warmup_fraction: float = 0.05, final_fraction: float = 0.0
) -> float:
    """Return the learning rate at a share `progress` of the training: a linear rise to `peak`, then a linear fall.

    It falls to `final_fraction` of the peak. Give (step + 0.5) / total_steps for step = 0, 1, ..: then neither the
    first step nor the last has a rate of zero.

    Raises ValueError when `progress` is outside [0, 1] or `warmup_fraction` outside [0, 1).
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}, expected a share of the training between 0 and 1")
    if not 0.0 <= warmup_fraction < 1.0:
        raise ValueError(f"warmup_fraction is {warmup_fraction}, expected at least 0 and less than 1")
    if progress < warmup_fraction:
        return peak * progress / warmup_fraction
    fallen = peak * (1.0 - progress) / (1.0 - warmup_fraction)
    return fallen + final_fraction * (peak - fallen) if final_fraction else fallen
