"""The params: their sections, the profiles, and what is wrong with a bad value."""
