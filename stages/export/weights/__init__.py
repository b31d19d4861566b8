"""The pruned weights as a Hugging Face folder, and the proof that they load."""
