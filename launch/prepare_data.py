"""See idgenrec_jax/launch/prepare_data.py."""

from idgenrec_jax.launch.prepare_data import main, run

if __name__ == "__main__":
    run(main)
