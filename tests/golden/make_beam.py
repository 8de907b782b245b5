"""Writes beam.npz: items and scores that transformers' beam search finds under a set of allowed sequences.

Run from the repository root, with torch 2.13.0 and transformers 5.23.0: python -m tests.golden.make_beam
"""

from pathlib import Path

import numpy as np

from tests.decoding.torch_reference import (
    random_prompts,
    random_sequences,
    reference_beam_search,
    reference_model,
    tensors_of,
)

# (sequences, longest, different tokens, beams, length penalty), ten prompts each
CASES = ((60, 5, 40, 3, 0.0), (60, 5, 40, 3, 1.0), (4, 3, 40, 5, 0.0), (900, 9, 8, 3, 2.0))


def main() -> None:
    """Decodes every case with one model and saves its weights, the inputs and the results."""
    rng = np.random.default_rng(7)
    model = reference_model(tied=False, seed=29)
    arrays = {f"tensor/{name}": value for name, value in tensors_of(model).items()}
    for case, (count, longest, num_tokens, num_beams, length_penalty) in enumerate(CASES):
        tokens, mask = random_prompts(rng, 10, 8)
        sequences = random_sequences(rng, count, longest, num_tokens)
        items, scores = reference_beam_search(model, tokens, mask, sequences, num_beams, length_penalty)
        arrays |= {
            f"{case}/tokens": tokens,
            f"{case}/mask": mask,
            f"{case}/lengths": np.array([len(sequence) for sequence in sequences], np.int32),
            f"{case}/sequences": np.concatenate(sequences).astype(np.int32),
            f"{case}/length_penalty": np.float32(length_penalty),
            f"{case}/items": items,
            f"{case}/scores": scores,
        }
    np.savez_compressed(Path(__file__).with_name("beam.npz"), num_cases=len(CASES), **arrays)


if __name__ == "__main__":
    main()
