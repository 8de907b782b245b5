"""The named presets: what each sets apart from the defaults of `config.Config`."""

from typing import Any

from idgenrec_jax.config import Config
from idgenrec_jax.errors import look_up


def _models(**sizes: Any) -> dict[str, Any]:
    """The same sizes for both T5s, as overrides."""
    return {f"{model}.{name}": value for model in ("recommender", "id_generator") for name, value in sizes.items()}


_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12}
_LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16}
_V1_1 = {"feed_forward": "gated-gelu", "tie_word_embeddings": False}

PRESETS: dict[str, dict[str, Any]] = {
    "sample": {
        **_models(d_model=64, d_kv=16, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4),
        "data.max_text_length": 64,
        "data.max_prompt_length": 192,
        "ids.no_repeat_ngram_size": 1,
        # An ID that is taken gets a number, and so stays beside those like it; other words would lead elsewhere.
        "ids.num_groups": 1,
        "ids.max_penalty": 1,
        "ids.num_lengths": 1,
        "training.rounds": 1,
        "training.recommender_epochs": 36,
        "training.recommender_batch_size": 64,
        "training.embedding_learning_rate_factor": 20.0,
        "training.query_learning_rate_factor": 0.25,
        "training.id_epochs": 0,
        "training.id_examples_per_epoch": 512,
        "training.id_items_per_batch": 192,
        "training.recommender_learning_rate": 2e-3,
        "training.warm_start_epochs": 50,
        "training.warm_start_learning_rate": 2e-3,
    },
    "tiny": {
        **_models(d_model=128, d_kv=32, d_ff=512, num_layers=2, num_decoder_layers=2, num_heads=4),
        "data.max_text_length": 64,
        "data.max_prompt_length": 256,
        "recommender.dropout_rate": 0.2,
        "training.rounds": 1,
        "training.id_epochs": 0,
        "training.id_examples_per_epoch": 2048,
        "training.recommender_epochs": 100,
        "training.validate_every_epochs": 10,
        "training.recommender_batch_size": 128,
        "training.recommender_learning_rate": 1e-3,
        "training.recommender_final_rate_fraction": 1.0,
        "training.recommender_average_decay": 0.9995,
        "training.embedding_learning_rate_factor": 40.0,
        "training.query_learning_rate_factor": 0.18,
        "training.id_learning_rate": 1e-5,
        "training.warm_start_epochs": 20,
        "training.warm_start_learning_rate": 1e-3,
        "training.warm_start_tokens": 7,
    },
    "small": {**_models(**_SMALL), "data.max_text_length": 256},
    "base": _models(**_BASE),
    "large": _models(**_LARGE),
    "3b": _models(**_LARGE | {"d_kv": 128, "d_ff": 16384, "num_heads": 32}),
    "11b": _models(**_LARGE | {"d_kv": 128, "d_ff": 65536, "num_heads": 128}),
    # T5 v1.1 and Flan-T5.
    "v1.1-small": _models(
        **_SMALL | _V1_1 | {"d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6}
    ),
    "v1.1-base": _models(**_BASE | _V1_1 | {"d_ff": 2048}),
    "v1.1-large": _models(**_LARGE | _V1_1 | {"d_ff": 2816}),
    "v1.1-xl": _models(**_LARGE | _V1_1 | {"d_model": 2048, "d_ff": 5120, "num_heads": 32}),
    "v1.1-xxl": _models(**_LARGE | _V1_1 | {"d_model": 4096, "d_ff": 10240, "num_heads": 64}),
    "paper": {
        **_models(**_SMALL),
        "recommender.folder": "t5-small",
        "id_generator.folder": "nandakishormpai/t5-small-machine-articles-tag-generation",
        "training.order": "id_first",
        "training.id_learning_rate": 1e-8,
        "data.history": "whole",
        "training.softmax": "vocabulary",
        "ids.no_repeat_ngram_size": 0,
        "evaluation.num_beams": 10,
        "evaluation.length_penalty": 1.0,
    },
}


def preset(name: str) -> Config:
    """Return the configuration of a named preset.

    Raises:
        InputError: an unknown name; the nearest valid one is suggested.
    """
    return Config().override(look_up(PRESETS, name, "--preset"))
