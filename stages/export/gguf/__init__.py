"""The pruned weights as GGUF files for llama.cpp, or the reason why there are none."""
