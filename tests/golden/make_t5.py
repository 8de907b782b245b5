"""Makes t5_v1_0.npz and t5_v1_1.npz: what transformers' T5 on PyTorch computes for two tiny random models.

Run from the repository root: `python -m tests.golden.make_t5`. Each file holds the config (JSON), the weights under
transformers' names, the inputs, the encoder output, the logits, the loss and the gradient of every weight. The
functions are also the reference side of the parity tests that run where PyTorch is installed.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

VARIANTS = {"v1_0": {"feed_forward_proj": "relu"}, "v1_1": {"feed_forward_proj": "gated-gelu"}}

# Heads times d_kv differs from d_model, and encoder and decoder differ in depth, so that no two sizes can be swapped
# unnoticed. Few position buckets and a short maximum distance put every kind of bucket into 20 positions.
TINY = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 14,
}
SOURCE, TARGET, IGNORED = 20, 9, -100


def make_model(variant: str, seed: int, **changes) -> transformers.T5ForConditionalGeneration:
    """A random model in evaluation mode whose weights are large enough for logits with real spread."""
    torch.manual_seed(seed)
    fields = {**TINY, **VARIANTS[variant], "decoder_start_token_id": 0, **changes}
    tied = variant == "v1_0"
    config = transformers.T5Config(**fields, tie_word_embeddings=tied)
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in name:
                parameter.normal_()
            elif "SelfAttention.q" in name or "EncDecAttention.q" in name:
                parameter.mul_(3.0)
    return model


def make_inputs(vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Tokens, masks and labels: rows without padding, padded on the right, and padded on the left."""
    random = np.random.default_rng(seed)
    tokens = random.integers(2, vocab_size, (3, SOURCE))
    mask = np.ones((3, SOURCE), bool)
    mask[1, 13:] = False
    mask[2, :6] = False
    labels = random.integers(2, vocab_size, (3, TARGET))
    labels[1, 5:] = IGNORED
    return {"tokens": np.where(mask, tokens, 0), "mask": mask, "labels": labels}


def compute(model: transformers.T5ForConditionalGeneration, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder output, logits, loss and gradients (`gradient/NAME`) of a model."""
    model.zero_grad()
    outputs = model(
        input_ids=torch.tensor(inputs["tokens"]),
        attention_mask=torch.tensor(inputs["mask"]).long(),
        labels=torch.tensor(inputs["labels"]),
    )
    outputs.loss.backward()
    results = {
        "encoded": outputs.encoder_last_hidden_state.detach().numpy(),
        "logits": outputs.logits.detach().numpy(),
        "loss": outputs.loss.detach().numpy(),
    }
    gradients = {f"gradient/{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return results | gradients


def main() -> None:
    """Writes one file per variant next to this script."""
    for number, variant in enumerate(VARIANTS):
        model = make_model(variant, seed=number)
        inputs = make_inputs(model.config.vocab_size, seed=number)
        weights = {f"weight/{name}": parameter.detach().numpy() for name, parameter in model.named_parameters()}
        config = TINY | VARIANTS[variant] | {"model_type": "t5", "tie_word_embeddings": variant == "v1_0"}
        np.savez_compressed(
            Path(__file__).parent / f"t5_{variant}.npz",
            config=json.dumps(config),
            **inputs,
            **weights,
            **compute(model, inputs),
        )


if __name__ == "__main__":
    main()
