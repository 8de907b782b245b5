"""The constrained beam search against transformers' generate, live where PyTorch is there and from golden arrays."""

from pathlib import Path

import numpy as np
import pytest

from idgenrec_jax.decoding.trie import build_trie
from tests.decoding.tiny_t5 import assert_same_items, build_model, search_items

GOLDEN = Path(__file__).parents[1] / "golden" / "beam.npz"
VOCAB_SIZE, EOS = 48, 1
# (sequences, longest, different tokens, beams): fewer items than beams (twice), wide, nested prefixes, deep
LIVE_CASES = ((2, 3, 9, 3), (4, 6, 2, 6), (50, 4, 44, 3), (60, 7, 2, 6), (150, 9, 6, 6))


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_golden_cases_are_reproduced(layout, tmp_path):
    with np.load(GOLDEN) as golden:
        arrays = dict(golden)
    tensors = {name.removeprefix("tensor/"): value for name, value in arrays.items() if name.startswith("tensor/")}
    model = build_model(tensors, tmp_path)
    num_prompts = 0
    for case in range(int(arrays["num_cases"])):
        values = {name.split("/")[1]: value for name, value in arrays.items() if name.startswith(f"{case}/")}
        sequences = [part.tolist() for part in np.split(values["sequences"], np.cumsum(values["lengths"])[:-1])]
        trie = build_trie(sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS, layout=layout)
        items = values["items"]
        found = search_items(
            model, values["tokens"], values["mask"], trie, items.shape[1], float(values["length_penalty"])
        )
        assert_same_items(found, items, values["scores"])
        assert ((items >= 0).sum(1) == min(len(sequences), items.shape[1])).all()
        num_prompts += len(items)
    assert num_prompts == 40


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_live_transformers_finds_the_same(tied, tmp_path):
    pytest.importorskip("torch")
    from tests.decoding import torch_reference as reference

    rng = np.random.default_rng(11 + tied)
    reference_model = reference.reference_model(tied=tied, seed=3 + tied)
    model = build_model(reference.tensors_of(reference_model), tmp_path)
    num_prompts = 0
    for count, longest, num_tokens, num_beams in LIVE_CASES:
        sequences = reference.random_sequences(rng, count, longest, num_tokens)
        tries = [
            build_trie(sequences, vocab_size=VOCAB_SIZE, eos_token_id=EOS, layout=layout) for layout in ("csr", "dense")
        ]
        for length_penalty in (0.0, 1.0):
            tokens, mask = reference.random_prompts(rng, 11, 7)
            items, scores = reference.reference_beam_search(
                reference_model, tokens, mask, sequences, num_beams, length_penalty
            )
            assert ((items >= 0).sum(1) == min(len(sequences), num_beams)).all()
            for trie in tries:
                assert_same_items(search_items(model, tokens, mask, trie, num_beams, length_penalty), items, scores)
            num_prompts += len(items)
    assert num_prompts == 110
