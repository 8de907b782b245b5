"""The programs by their short names, in a checkout: python -m launch.train is python -m idgenrec_jax.launch.train.

This folder is not installed: other software has packages of this name. Installed, the programs are `idgenrec train`
and so on.
"""
