"""What leaves a run: Hugging Face folders, and the recommend function as one compiled file."""
