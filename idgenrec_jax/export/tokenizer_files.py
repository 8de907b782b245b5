"""The tokenizer of an export, written so that transformers makes the tokens that the models were trained on."""

from pathlib import Path

import tokenizers
from tokenizers.processors import TemplateProcessing

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, read_json, write_json

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_PROBE = "a red kettle"


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer to `folder` with a rule that every text ends with the end-of-sequence token.

    Tokenizers of T5's kind have the rule; most others add another token or none. Transformers 4 wants the names of the
    model's inputs as well: it would hand a T5 the token types of BERT.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    tokenizer.save(folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / _TOKENIZER))
    eos = backend.id_to_token(tokenizer.eos_id)
    if backend.encode(_PROBE).ids != [*tokenizer.encode(_PROBE), tokenizer.eos_id]:
        backend.post_processor = TemplateProcessing(
            single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, tokenizer.eos_id)]
        )
        with atomic_writer(folder / _TOKENIZER) as file:
            file.write(backend.to_str() + "\n")
    config = read_json(folder / _CONFIG, remedy="export again")
    write_json(folder / _CONFIG, config | {"model_input_names": ["input_ids", "attention_mask"]})


class ExportedTokenizer:
    """What a reader of an export makes of a text."""

    def __init__(self, folder: Path):
        """Read what `save_tokenizer` wrote to `folder`.

        Raises:
            InputError: it cannot be read back.
        """
        path = folder / _TOKENIZER
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        # The tokenizers library raises plain Exception for every fault of the file.
        except Exception as error:
            raise InputError(f"{path}: cannot be read back ({error}); export again") from error

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that the tokenizer adds by itself."""
        return self._backend.encode(text).ids
