"""Score a trained run on a held-out split: python -m launch.evaluate --workdir=DIR [--split=..] [--search=..]."""

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
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "which held-out items to predict")
_SEARCH = flags.DEFINE_enum(
    "search", None, ["beam", "exact"], "how the best items are found, exact beside beam; default: as the run's setting"
)
_DATA = define_path("data", None, "data folder, where it is no longer the one the run was trained on")
define_process_flags()

TOP = 10
"""How many of the first results of both searches are compared."""


def main() -> None:
    """Rank the whole catalogue for every target, print the metrics beside popularity's, and write them to the workdir.

    Beside exact search stands beam search, and how much of the exact top ten it finds.
    """
    start_processes()
    use_compilation_cache()

    from idgenrec_jax import run_files
    from idgenrec_jax.evaluation.metrics import metrics_table, shared_share
    from idgenrec_jax.evaluation.popularity import popularity_metrics
    from idgenrec_jax.files import write_json
    from idgenrec_jax.processes import from_main
    from idgenrec_jax.recommender import Recommender
    from idgenrec_jax.workdir import protocol

    split = _SPLIT.value
    recommender = Recommender(_WORKDIR.value, data=_DATA.value)
    config = recommender.config.override({"evaluation.search": _SEARCH.value} if _SEARCH.value else {})
    ranking = recommender.evaluate(split, config.evaluation.search)
    metrics = ranking.metrics()
    rows, beside, notes = {split: metrics}, {}, []
    if config.evaluation.search == "exact":
        beam = recommender.evaluate(split, "beam")
        share = shared_share(ranking.items, beam.items, TOP)
        rows = {f"{split}, exact search": metrics, f"{split}, beam search": beam.metrics()}
        beside = {"beam": beam.metrics(), f"share_of_exact_top_{TOP}": share}
        notes.append(f"beam search finds {share:.2%} of the exact top {TOP}, mean over targets")
    popularity = popularity_metrics(recommender.dataset, split, num_results=recommender.config.evaluation.num_beams)
    print("\n".join([metrics_table({**rows, f"popularity, {split}": popularity}, list(metrics)), *notes]))
    path = f"{_WORKDIR.value}/{run_files.evaluation(split)}"
    scores = {
        split: metrics,
        **beside,
        "popularity": popularity,
        "selected": recommender.selected,
        "protocol": protocol(config, recommender.dataset.split),
        "data": _DATA.value or recommender.config.data.path,
    }
    from_main(lambda: write_json(path, scores))
    print(json.dumps({"written": path}))


if __name__ == "__main__":
    run(main)
