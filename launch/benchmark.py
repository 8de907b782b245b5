"""See idgenrec_jax/launch/benchmark.py."""

from idgenrec_jax.launch.benchmark import main, run

if __name__ == "__main__":
    run(main)
