"""Make a data folder: python -m launch.prepare_data --source=NAME --input=DIR --output=DIR."""

from absl import flags

from idgenrec_jax.data.sources import SOURCES
from idgenrec_jax.data.sources.preparation import DUPLICATES, prepare
from idgenrec_jax.launch.command_line import define_path, run

_FORMATS = "; ".join(f"{name}: {source.help}" for name, source in sorted(SOURCES.items()))

_SOURCE = flags.DEFINE_enum("source", None, sorted(SOURCES), f"raw format; {_FORMATS}", required=True)
_INPUT = define_path("input", None, "folder with the raw files, .gz or unpacked", required=True)
_OUTPUT = define_path("output", None, "data folder to make, new or empty", required=True)
_CORE = flags.DEFINE_integer("core", 5, "interactions that a user and an item need in order to stay", lower_bound=1)
_MIN_RATING = flags.DEFINE_float("min_rating", 0.0, "lowest rating that counts; 0: all count, also what has none")
_DUPLICATES = flags.DEFINE_enum(
    "duplicates",
    DUPLICATES[0],
    DUPLICATES,
    "which of a user's interactions with one item at different times count: all (keep), the first or the last; those "
    "with equal user, item and time are one in any case",
)


def main() -> None:
    """Convert, and say what came out, what was dropped and how ties in time were broken."""
    made = prepare(
        _SOURCE.value,
        _INPUT.value,
        _OUTPUT.value,
        core=_CORE.value,
        min_rating=_MIN_RATING.value,
        duplicates=_DUPLICATES.value,
    )
    print(f"{_OUTPUT.value}: {made.summary()}")


if __name__ == "__main__":
    run(main)
