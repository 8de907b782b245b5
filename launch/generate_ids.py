"""See idgenrec_jax/launch/generate_ids.py."""

from idgenrec_jax.launch.generate_ids import main, run

if __name__ == "__main__":
    run(main)
