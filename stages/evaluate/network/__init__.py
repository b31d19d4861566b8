"""The elastic network: a checkpoint, its layers, and how they run at any width."""
