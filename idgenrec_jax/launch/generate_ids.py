"""Write a unique textual ID for every item of a catalogue: python -m launch.generate_ids --workdir=DIR ..."""

from absl import flags

from idgenrec_jax.launch.command_line import (
    define_path,
    define_process_flags,
    refuse_without,
    run,
    start_processes,
    use_compilation_cache,
)

_WORKDIR = define_path("workdir", None, "run of launch.train; its ID generator at the best validation writes")
_ID_GENERATOR = define_path("id_generator", None, "Hugging Face T5 folder or name, instead of --workdir")
_TOKENIZER = define_path("tokenizer", None, "tokenizer folder or name for --id_generator; default: its own")
_DATA = define_path("data", None, "'sample' or a data folder: the items to name", required=True)
_OUTPUT = define_path("output", None, "jsonl file to write, {item, id, tokens} a line", required=True)
flags.mark_flags_as_mutual_exclusive(["workdir", "id_generator"], required=True)
define_process_flags()


def main() -> None:
    """Generate the IDs by Algorithm 1 and write them."""
    if not _ID_GENERATOR.value:
        refuse_without("--id_generator", ["tokenizer"])
    start_processes()
    use_compilation_cache()

    from idgenrec_jax.config import Config
    from idgenrec_jax.data.sample import load_data
    from idgenrec_jax.data.text import Tokenizer
    from idgenrec_jax.ids.neighbours import generator_texts
    from idgenrec_jax.ids.rounds import id_generation
    from idgenrec_jax.ids.table import save_table
    from idgenrec_jax.inputs import check_texts
    from idgenrec_jax.models.create import create_model
    from idgenrec_jax.models.huggingface import resolve_folder
    from idgenrec_jax.processes import from_main
    from idgenrec_jax.progress import Progress
    from idgenrec_jax.sharding import make_mesh
    from idgenrec_jax.trained_run import load_run

    dataset = load_data(_DATA.value)
    check_texts(dataset, _DATA.value)
    if _WORKDIR.value:
        trained = load_run(_WORKDIR.value)
        config, tokenizer = trained.config, trained.tokenizer
        graphdef, params = trained.graphdefs["id_generator"], trained.params["id_generator"]
        mesh = trained.mesh
    else:
        folder = resolve_folder(_ID_GENERATOR.value, flag="--id_generator", random_flag=None)
        config = Config().override({"id_generator.folder": str(folder)})
        mesh = make_mesh(config.mesh)
        tokenizer = Tokenizer.load(_TOKENIZER.value or folder)
        model = create_model(config.id_generator, tokenizer, mesh, seed=0, section="id_generator")
        graphdef, params = model.graphdef, model.params
    progress = Progress("writing IDs", len(dataset.items), "text")
    table = id_generation(config, graphdef, tokenizer, mesh).generate(
        params,
        dataset.items,
        generator_texts(dataset, tokenizer, config),
        on_progress=lambda done, total: progress.update(done, total=total),
    )
    progress.close()
    from_main(lambda: save_table(table, _OUTPUT.value))
    print(f"{len(table)} IDs in {_OUTPUT.value}")


if __name__ == "__main__":
    run(main)
