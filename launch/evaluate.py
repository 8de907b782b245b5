"""See idgenrec_jax/launch/evaluate.py."""

from idgenrec_jax.launch.evaluate import main, run

if __name__ == "__main__":
    run(main)
