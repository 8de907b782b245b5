"""See idgenrec_jax/launch/train.py."""

from idgenrec_jax.launch.train import main, run

if __name__ == "__main__":
    run(main)
