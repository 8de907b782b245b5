"""Makes sample_tokenizer.json: `python -m idgenrec_jax.data.make_sample_tokenizer`.

To be run again, and its result committed, whenever the catalogue's words or our own prompt templates change. The
training of a Unigram model sums floats in an order that differs from run to run, so the file is committed, not remade.
"""

import re
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from idgenrec_jax.data.sample import TOKENIZER_FILE, load_sample
from idgenrec_jax.data.templates import default_templates
from idgenrec_jax.data.words import find_words
from idgenrec_jax.files import atomic_writer

VOCABULARY_SIZE = 2000
_PRINTABLE_ASCII = [chr(code) for code in range(33, 127)]


def training_texts() -> list[str]:
    """What the tokenizer must write well: the item texts, our prompt templates, and every word of both by itself."""
    dataset = load_sample()
    templates = [template for with_ids in (False, True) for template in default_templates(with_ids)]
    prompts = [re.sub(r"\{[^{}]*\}", " ", template.input_text) for template in templates] + [dataset.name]
    texts = [*dataset.item_texts, *prompts]
    words = sorted({word for text in texts for word in find_words(text.lower())})
    # The trainer only considers strings that recur in *different* words. Two endings make every word such a string, so
    # that common and rare words alike can become one piece, and IDs and prompts take one token a word.
    return texts + [word + ending for word in words for ending in (".", ",", ";", "")]


def train_tokenizer() -> tokenizers.Tokenizer:
    """A lower-casing Unigram tokenizer with T5's special tokens (0 padding, 1 end, 2 unknown) and word marks."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=_PRINTABLE_ASCII,
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


def main() -> None:
    """Writes the file beside this module."""
    tokenizer = train_tokenizer()
    path = Path(__file__).with_name(TOKENIZER_FILE)
    with atomic_writer(path) as file:
        file.write(tokenizer.to_str() + "\n")
    print(f"{path}: {tokenizer.get_vocab_size()} tokens, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
