"""See idgenrec_jax/launch/compare_ids.py."""

from idgenrec_jax.launch.compare_ids import main, run

if __name__ == "__main__":
    run(main)
