"""Makes a data folder: `python -m launch.prepare_data --source=amazon|movielens --input=DIR --output=DIR`."""

from absl import flags

from idgenrec_jax.data.sources.amazon import prepare_amazon
from idgenrec_jax.data.sources.movielens import prepare_movielens
from idgenrec_jax.launch.command_line import define_path, run

_SOURCES = {"amazon": prepare_amazon, "movielens": prepare_movielens}

_SOURCE = flags.DEFINE_enum("source", None, sorted(_SOURCES), "The raw format.", required=True)
_INPUT = define_path("input", None, "Folder with the raw files, .gz or unpacked.", required=True)
_OUTPUT = define_path("output", None, "Data folder to make; must not exist, or be empty.", required=True)
_CORE = flags.DEFINE_integer("core", 5, "Users and items with fewer interactions are dropped.", lower_bound=1)
_MIN_RATING = flags.DEFINE_float("min_rating", 0.0, "Ratings below this are not counted as interactions.")


def main() -> None:
    """Convert, and say how many users, items and interactions came out and how ties in time were broken."""
    prepare = _SOURCES[_SOURCE.value]
    made = prepare(_INPUT.value, _OUTPUT.value, core=_CORE.value, min_rating=_MIN_RATING.value)
    print(
        f"{_OUTPUT.value}: {made.users} users, {made.items} items, {made.interactions} of {made.raw_interactions} "
        f"interactions\n{made.tied_interactions} of them share user and timestamp with another: {made.tie_rule}"
    )


if __name__ == "__main__":
    run(main)
