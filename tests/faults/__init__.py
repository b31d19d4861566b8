"""The fault suite: real stages are killed, starved, and fed damaged files; one table says what became of it."""
