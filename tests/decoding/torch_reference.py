"""Tiny random T5 models in PyTorch and what transformers' own searches find with them.

Used by the parity tests and by the scripts that make the golden arrays; needs torch and transformers only.
"""

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

SHAPE = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
}
EOS, PAD, START = 1, 0, 0


def reference_model(*, tied: bool, seed: int) -> T5ForConditionalGeneration:
    """A random T5 whose next-token distributions are neither flat nor certain (logits deviate by about 2)."""
    config = T5Config(
        **SHAPE,
        feed_forward_proj="relu" if tied else "gated-gelu",
        tie_word_embeddings=tied,
        decoder_start_token_id=START,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = T5ForConditionalGeneration(config).eval()
    if not tied:
        # transformers 5 lets a model that it made itself share one table in either case.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(_random_tensor(name, tuple(parameter.shape), tied, rng)))
    return model


def _random_tensor(name: str, shape: tuple[int, ...], tied: bool, rng: np.random.Generator) -> np.ndarray:
    """Values on the scale that each kind of T5 parameter is made for."""
    noise = rng.standard_normal(shape)
    if "layer_norm" in name:
        values = 1 + 0.1 * noise
    elif "relative_attention_bias" in name or name == "lm_head.weight":
        values = 0.5 * noise
    elif name == "shared.weight":
        values = (2.0 if tied else 1.0) * noise
    else:
        # Products with the queries are not scaled in T5.
        values = noise * shape[-1] ** -0.5 * (0.5 if name.endswith(".q.weight") else 1.0)
    return values.astype(np.float32)


def tensors_of(model: T5ForConditionalGeneration) -> dict[str, np.ndarray]:
    """The model's parameters under transformers' names."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def random_prompts(rng: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of unequal lengths from 2 to `length`, and their mask, both [batch_size, length]."""
    tokens = rng.integers(2, SHAPE["vocab_size"], (batch_size, length))
    lengths = rng.integers(2, length + 1, batch_size)
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    return np.where(mask, tokens, PAD).astype(np.int32), mask


def random_sequences(rng: np.random.Generator, count: int, max_length: int, num_tokens: int) -> list[tuple[int, ...]]:
    """Up to `count` different sequences over few tokens, so that many share a prefix and some are one of another."""
    found = {}
    for length in rng.integers(1, max_length + 1, count):
        sequence = tuple(int(token) for token in rng.integers(2, 2 + num_tokens, length))
        found[sequence] = None
        if rng.random() < 0.3:
            found[sequence[: rng.integers(1, length + 1)]] = None
    sequences = list(found)[:count]
    return [sequences[index] for index in rng.permutation(len(sequences))]


def reference_beam_search(
    model: T5ForConditionalGeneration,
    tokens: np.ndarray,
    mask: np.ndarray,
    sequences: list[tuple[int, ...]],
    num_beams: int,
    length_penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores [batch, num_beams] of `generate` restricted to the sequences; item -1 where none is left."""
    children: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        ended = (*sequence, EOS)
        for length in range(len(ended)):
            children.setdefault(ended[:length], set()).add(ended[length])
    items = {sequence: item for item, sequence in enumerate(sequences)}

    def allowed(_: int, prefix: torch.Tensor) -> list[int]:
        return sorted(children.get(tuple(prefix.tolist()[1:]), {EOS}))

    result = model.generate(
        input_ids=torch.from_numpy(tokens).long(),
        attention_mask=torch.from_numpy(mask).long(),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        early_stopping=False,
        length_penalty=length_penalty,
        max_length=max(len(sequence) for sequence in sequences) + 2,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = [tuple(row[1:]) for row in result.sequences.tolist()]
    found = [row[: row.index(EOS)] if EOS in row else row for row in found]
    indices = np.array([items.get(row, -1) for row in found], np.int32)
    scores = result.sequences_scores.numpy().astype(np.float32)
    # transformers fills places for which there is no item with beams at -1e9 or its quotient by the length.
    indices[scores < -1e6] = -1
    return indices.reshape(-1, num_beams), scores.reshape(-1, num_beams)
