"""Export a trained run: python -m launch.export --workdir=DIR --output=DIR [--format=huggingface|stablehlo]."""

from absl import flags

from idgenrec_jax.errors import InputError
from idgenrec_jax.launch.command_line import define_path, run, use_compilation_cache

_WORKDIR = define_path("workdir", None, "run of launch.train; its best state is exported", required=True)
_OUTPUT = define_path("output", None, "new folder to write", required=True)
_DATA = define_path("data", None, "the run's data folder; not needed, its first user is the card's example")
_FORMAT = flags.DEFINE_enum(
    "format",
    "huggingface",
    ["huggingface", "stablehlo"],
    "huggingface: folders that transformers loads; stablehlo: the recommend function, compiled by any JAX",
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "huggingface: of the weights as written")
_BATCH = flags.DEFINE_integer("batch_size", 1, "stablehlo: histories that one call answers", lower_bound=1)
_PLATFORMS = flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "stablehlo: where the function is to run")
_OF_FORMAT = {"huggingface": (_DTYPE,), "stablehlo": (_BATCH, _PLATFORMS)}


def main() -> None:
    """Write the export."""
    for name, own in _OF_FORMAT.items():
        for flag in own:
            if flag.present and name != _FORMAT.value:
                raise InputError(f"--{flag.name} is for --format={name}; found --format={_FORMAT.value}")
    use_compilation_cache()
    if _FORMAT.value == "huggingface":
        from idgenrec_jax.export.folders import export_folders

        export_folders(_WORKDIR.value, _OUTPUT.value, data=_DATA.value, dtype=_DTYPE.value)
    else:
        from idgenrec_jax.export.recommend_program import export_program

        export_program(
            _WORKDIR.value,
            _OUTPUT.value,
            data=_DATA.value,
            batch_size=_BATCH.value,
            platforms=_PLATFORMS.value,
        )
    print(f"exported to {_OUTPUT.value}")


if __name__ == "__main__":
    run(main)
