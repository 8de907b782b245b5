"""Score a trained run on a held-out split: python -m launch.evaluate --workdir=DIR [--split=validation|test]."""

import json

from absl import flags

from idgenrec_jax.launch.command_line import (
    define_path,
    define_process_flags,
    run,
    start_processes,
    use_compilation_cache,
)

_WORKDIR = define_path("workdir", None, "folder of a run of launch.train", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "which held-out item to predict")
_DATA = define_path("data", None, "data folder, where it is no longer the one the run was trained on")
define_process_flags()


def main() -> None:
    """Rank the whole catalogue for every user, print the metrics beside popularity's, and write them to the workdir."""
    start_processes()
    use_compilation_cache()

    from idgenrec_jax import run_files
    from idgenrec_jax.evaluation.metrics import metrics_table
    from idgenrec_jax.evaluation.popularity import popularity_metrics
    from idgenrec_jax.files import write_json
    from idgenrec_jax.processes import from_main
    from idgenrec_jax.recommender import Recommender
    from idgenrec_jax.workdir import protocol

    split = _SPLIT.value
    recommender = Recommender(_WORKDIR.value, data=_DATA.value)
    metrics = recommender.evaluate(split).metrics()
    popularity = popularity_metrics(recommender.dataset, split, num_results=recommender.config.evaluation.num_beams)
    print(metrics_table({split: metrics, f"popularity, {split}": popularity}, list(metrics)))
    path = f"{_WORKDIR.value}/{run_files.evaluation(split)}"
    scores = {
        split: metrics,
        "popularity": popularity,
        "selected": recommender.selected,
        "protocol": protocol(recommender.config),
        "data": _DATA.value or recommender.config.data.path,
    }
    from_main(lambda: write_json(path, scores))
    print(json.dumps({"written": path}))


if __name__ == "__main__":
    run(main)
