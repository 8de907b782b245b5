"""See idgenrec_jax/launch/check_data.py."""

from idgenrec_jax.launch.check_data import main, run

if __name__ == "__main__":
    run(main)
