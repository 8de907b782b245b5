"""A Unigram tokenizer trained on a catalogue's own texts, for random weights, which come without one.

sentencepiece trains it and tokenizers runs it. The trainer of tokenizers adds floats in the order of a hash table,
which differs from process to process. That of sentencepiece makes the same of the same texts, to the byte.
"""

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from idgenrec_jax.data.words import find_words
from idgenrec_jax.errors import InputError

TRAINED = "train"
"""The name that stands for a tokenizer to be trained, in the place of a folder's."""
DEFAULT_SIZE = 8000
SMALLEST_SIZE, LARGEST_SIZE = 512, 500_000
MOST_CHARACTERS = 10_000_000
"""Characters of the texts that are learned from; of larger catalogues a sample of the texts is."""

# Those of T5, in its order: 0 is padding, 1 the end of a sequence, 2 an unknown token.
_SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PRINTABLE_ASCII = tuple(chr(code) for code in range(33, 127))
# sentencepiece takes these for its own marks, of words and of what it does not know.
_RESERVED = frozenset("\u2581\u2585")
# A string of 100,000 characters takes the trainer seconds; long ones, as scripts without blanks have, are cut.
_LONGEST_WORD = 256
# The trainer only considers strings that recur in different words; with an ending, every word is such a string.
_ENDINGS = ("", ",", ".")
_SEED = 0


def is_to_train(name: str) -> bool:
    """Tell whether a name is "train" or begins with "train:", and so that of no folder."""
    return name.partition(":")[0] == TRAINED


def trained_size(name: str) -> int | None:
    """Return how many entries "train" or "train:SIZE" asks for; None where the name is that of a tokenizer.

    Raises:
        InputError: SIZE is no whole number, or out of range.
    """
    if not is_to_train(name):
        return None
    _, colon, size = name.partition(":")
    if not colon:
        return DEFAULT_SIZE
    if not re.fullmatch("[0-9]{1,9}", size) or not SMALLEST_SIZE <= int(size) <= LARGEST_SIZE:
        raise InputError(
            f"--config.data.tokenizer={name}: expected {TRAINED}:SIZE with {SMALLEST_SIZE} to {LARGEST_SIZE} entries, "
            f"such as {TRAINED}:{DEFAULT_SIZE} (a folder of this name is ./{name})"
        )
    return int(size)


def learned_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts that a tokenizer is trained on: all, or so many in random order as have MOST_CHARACTERS.

    The order depends on the number of texts alone.
    """
    if sum(map(len, texts)) <= MOST_CHARACTERS:
        return list(texts)
    chosen: list[str] = []
    room = MOST_CHARACTERS
    for index in np.random.default_rng(_SEED).permutation(len(texts)):
        chosen.append(texts[index][:room])
        room -= len(chosen[-1])
        if not room:
            break
    return chosen


def train_tokenizer(
    texts: Sequence[str],
    size: int,
    *,
    whole: Iterable[str] = (),
    normalizer: normalizers.Normalizer | None = None,
) -> tokenizers.Tokenizer:
    """Return a Unigram tokenizer of at most `size` entries, fewer where the texts do not have as many strings.

    It has T5's special tokens and word marks, and all 256 bytes for what it cannot spell otherwise. At most half of the
    other entries are single characters: those of printable ASCII, of `whole`, and the most frequent ones of the texts.
    The texts of `whole` are those in which every word should be one token. The default `normalizer` is NFC, which keeps
    case. The same arguments give the same tokenizer, to the byte.

    Raises:
        InputError: the trainer failed.
    """
    normalizer = normalizers.NFC() if normalizer is None else normalizer
    whole = [normalizer.normalize_str(text) for text in whole]
    words = _count_words(map(normalizer.normalize_str, texts))
    for word in dict.fromkeys(word for text in whole for word in [*text.split(), *find_words(text)]):
        # As if it were in all texts, so that no other string is worth more.
        words.update({word + ending: max(1, len(texts)) for ending in _ENDINGS})
    room = size - len(_SPECIAL_TOKENS) - len(_BYTES)
    alphabet = _alphabet(words, first="".join(whole), limit=room // 2)
    pieces = _train_pieces(_spelled(words, alphabet), room + len(_SPECIAL_TOKENS))
    return _assemble(pieces, normalizer)


def _count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each string between blanks is there, and each word by itself, as IDs are made of."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    by_itself = {word for string in counts for word in find_words(string)}
    for word in by_itself:
        counts.update(word + ending for ending in _ENDINGS)
    return counts


def _alphabet(words: Counter[str], *, first: str, limit: int) -> frozenset[str]:
    """The characters that become entries: printable ASCII, those of `first`, and the most frequent ones."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    # Each once, in this order; control characters are left to bytes.
    wanted = dict.fromkeys([*_PRINTABLE_ASCII, *first, *frequent])
    fit = [one for one in wanted if not (one.isspace() or one in _RESERVED or unicodedata.category(one) == "Cc")]
    return frozenset(fit[:limit])


def _spelled(words: Counter[str], alphabet: frozenset[str]) -> dict[str, int]:
    """The words in a fixed order, cut where a character is not in the alphabet; and each of its characters alone."""
    counts: Counter[str] = Counter()
    # Characters that are left out part a word as blanks do.
    others = {ord(character): " " for word in words for character in word if character not in alphabet}
    for word, count in words.items():
        for part in (word.translate(others) if others else word).split():
            for start in range(0, len(part), _LONGEST_WORD):
                counts[part[start : start + _LONGEST_WORD]] += count
    counts.update(sorted(alphabet))
    return dict(sorted(counts.items()))


def _train_pieces(words: dict[str, int], size: int) -> list[tuple[str, float]]:
    """The pieces that sentencepiece finds in words and their counts, with their log-probabilities."""
    # A library of C++ that only a run which trains a tokenizer loads.
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
            model_writer=model,
            input_format="tsv",
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            # Sums over threads depend on how many there are.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"--config.data.tokenizer: no tokenizer can be trained on these texts ({str(error).splitlines()[0]}); name "
            "a folder with one"
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    # Few digits, so that the numbers of tokenizer.json are read as they were written.
    return [
        (trained.id_to_piece(index), round(trained.get_score(index), 4))
        for index in range(len(_SPECIAL_TOKENS), trained.get_piece_size())
    ]


def _assemble(pieces: list[tuple[str, float]], normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    """The tokenizer of special tokens, bytes and pieces."""
    # Less likely than the six characters of "<0x41>", so that these are no byte where they stand in a text.
    of_bytes = 10 * min(score for _, score in pieces)
    vocabulary = [(token, 0.0) for token in _SPECIAL_TOKENS] + [(byte, of_bytes) for byte in _BYTES]
    taken = {token for token, _ in vocabulary}
    vocabulary += [(piece, score) for piece, score in pieces if piece not in taken]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer
