"""What a run would take, before it is run: evaluations, tokens, FLOPs, memory, hours."""
