"""A tokenizer of a few words and all letters, so that every text has tokens and words differ in length."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from idgenrec_jax.data.text import Tokenizer

WORDS = "red blue green pen phone chair lamp desk paper ink old great steel wood title brand item"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Each of WORDS is one token; other words are spelled out after a word mark."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -3.0)]
    pieces += [(character, -5.0) for character in "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH_"]
    pieces += [("\u2581" + word, -4.0) for word in WORDS.split()]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
