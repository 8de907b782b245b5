"""Compare tables of IDs by the recommenders that learn them: python -m launch.compare_ids --tables=A,B --output=DIR"""

import dataclasses
from pathlib import Path

from absl import flags

from idgenrec_jax.launch.command_line import (
    config_from_flags,
    data_from_flags,
    define_config_flags,
    define_path,
    run,
    stop_on_terminate,
    use_compilation_cache,
)

_TABLES = flags.DEFINE_list(
    "tables",
    [],
    "what is compared, the first with all others: files of IDs, folders of runs (every round of theirs), and schemes",
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many recommenders are trained on each table", lower_bound=1)
_OUTPUT = define_path("output", None, "folder of the comparison; one that was begun goes on", required=True)
define_path("data", None, "'sample' (the embedded catalogue, the default) or a data folder")
define_config_flags()


def main() -> None:
    """Train a recommender from scratch on each table with each seed, then print and write what was found."""
    data = data_from_flags()
    config = config_from_flags(flags.FLAGS.preset or ("sample" if data == "sample" else "tiny"))
    output = Path(_OUTPUT.value)
    should_stop = stop_on_terminate()
    use_compilation_cache()

    from idgenrec_jax.files import write_json
    from idgenrec_jax.id_comparison import compare_tables, comparison_table, tables_of
    from idgenrec_jax.training.alternation import Interrupted

    tables = tables_of(_TABLES.value)
    try:
        results = compare_tables(
            config, tables, seeds=range(_SEEDS.value), output=output, should_stop=should_stop
        )
    except Interrupted:
        print(f"stopped and saved; the same command goes on ({output})")
        return
    write_json(output / "comparison.json", {"tables": [dataclasses.asdict(one) for one in results]})
    print(f"\n{comparison_table(results)}\n\n{output}/comparison.json")


if __name__ == "__main__":
    run(main)
