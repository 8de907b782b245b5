"""See idgenrec_jax/launch/export.py."""

from idgenrec_jax.launch.export import main, run

if __name__ == "__main__":
    run(main)
