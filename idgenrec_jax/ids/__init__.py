"""Textual IDs: the table and the algorithm that fills it."""
