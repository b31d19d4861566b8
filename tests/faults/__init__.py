"""The fault suite: real stages are killed, fed damaged files and starved, and one table says what became of it."""
