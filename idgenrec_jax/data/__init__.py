"""From raw files to fixed-shape batches."""
