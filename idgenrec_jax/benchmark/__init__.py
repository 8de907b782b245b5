"""What `launch.benchmark` times: this package's hot paths, and PyTorch + transformers beside them."""
