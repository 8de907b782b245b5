"""Makes sample_tokenizer.json: `python -m idgenrec_jax.data.make_sample_tokenizer`.

To be run again, and its result committed, whenever the catalogue's words or our own prompt templates change. The file
that is committed was made by an earlier trainer and has no bytes. It writes the catalogue in as many tokens, and every
result of the embedded catalogue rests on it.
"""

from pathlib import Path

import tokenizers
from tokenizers import normalizers

from idgenrec_jax.data.sample import TOKENIZER_FILE, load_sample
from idgenrec_jax.data.templates import default_templates, template_texts
from idgenrec_jax.data.tokenizer_training import train_tokenizer
from idgenrec_jax.data.words import find_words
from idgenrec_jax.files import atomic_writer

VOCABULARY_SIZE = 2000


def training_texts() -> list[str]:
    """What the tokenizer must write at one token a word: our prompt templates, and every word of the item texts."""
    dataset = load_sample()
    prompts = [text for with_ids in (False, True) for text in template_texts(default_templates(with_ids))]
    words = sorted({word for text in [*dataset.item_texts, *prompts] for word in find_words(text.lower())})
    return [*prompts, dataset.name, *words]


def train_sample_tokenizer() -> tokenizers.Tokenizer:
    """A lower-casing Unigram tokenizer with T5's special tokens (0 padding, 1 end, 2 unknown) and word marks."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return train_tokenizer(
        load_sample().item_texts, VOCABULARY_SIZE, whole=training_texts(), normalizer=normalizer
    )


def main() -> None:
    """Writes the file beside this module."""
    tokenizer = train_sample_tokenizer()
    path = Path(__file__).with_name(TOKENIZER_FILE)
    with atomic_writer(path) as file:
        file.write(tokenizer.to_str() + "\n")
    print(f"{path}: {tokenizer.get_vocab_size()} tokens, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
