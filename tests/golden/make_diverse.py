"""Writes diverse.npz: what group beam search in transformers finds on a tiny random T5.

transformers 4.56.2 is the last release that has group beam search built in. Run from the repository root, with
torch 2.13.0 and transformers 4.56.2: python -m tests.golden.make_diverse
"""

import itertools
from pathlib import Path

import numpy as np
import torch

from tests.decoding.torch_reference import random_prompts, reference_model, tensors_of

# (min_length, max_length)
LENGTHS = ((1, 11), (11, 21), (5, 8))
PENALTIES = (0.5, 1.0, 3.0, 9.0)
# (beams, groups, length penalty)
GROUPS = ((10, 10, 1.0), (6, 3, 1.0), (6, 3, 0.0))
NUM_PROMPTS = 6
# (beams, groups, length penalty, min_length, max_length, diversity penalty, no_repeat_ngram_size)
NO_REPEAT = (
    (10, 10, 1.0, 11, 21, 1.0, 1),
    (10, 10, 1.0, 1, 21, 3.0, 1),
    (10, 10, 1.0, 11, 21, 1.0, 3),
    (10, 10, 1.0, 1, 21, 3.0, 3),
    (6, 3, 0.0, 5, 21, 0.5, 2),
    (6, 3, 1.0, 11, 21, 1.0, 2),
)


def main() -> None:
    """Decodes the same prompts under every combination and saves the weights, prompts, sequences and scores."""
    rng = np.random.default_rng(5)
    model = reference_model(tied=False, seed=29)
    arrays = {f"tensor/{name}": value for name, value in tensors_of(model).items()}
    tokens, mask = random_prompts(rng, NUM_PROMPTS, 9)
    arrays |= {"tokens": tokens, "mask": mask}
    cases = [
        (*group, *lengths, penalty, 0)
        for group, lengths, penalty in itertools.product(GROUPS, LENGTHS, PENALTIES)
    ]
    for num_beams, num_groups, length_penalty, min_length, max_length, penalty, no_repeat_ngram_size in (
        *cases,
        *NO_REPEAT,
    ):
        result = model.generate(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(mask).long(),
            num_beams=num_beams,
            num_beam_groups=num_groups,
            num_return_sequences=num_beams,
            diversity_penalty=penalty,
            length_penalty=length_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            min_length=min_length,
            max_length=max_length,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = result.sequences.numpy()[:, 1:]
        found = np.pad(found, ((0, 0), (0, max_length - 1 - found.shape[1])))
        name = f"{num_beams}/{num_groups}/{length_penalty}/{min_length}/{max_length}/{penalty}/{no_repeat_ngram_size}"
        arrays[f"found/{name}"] = found.reshape(NUM_PROMPTS, num_beams, -1).astype(np.int8)
        arrays[f"scores/{name}"] = result.sequences_scores.numpy().reshape(NUM_PROMPTS, num_beams)
    np.savez_compressed(Path(__file__).with_name("diverse.npz"), **arrays)


if __name__ == "__main__":
    main()
