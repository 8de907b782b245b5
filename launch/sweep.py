"""See idgenrec_jax/launch/sweep.py."""

from idgenrec_jax.launch.sweep import main, run

if __name__ == "__main__":
    run(main)
