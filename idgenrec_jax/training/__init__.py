"""Losses, steps, phases and checkpoints."""
