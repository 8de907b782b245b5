"""Sweeps: lists of trials, each a run of launch.train with some fields of the configuration replaced."""
