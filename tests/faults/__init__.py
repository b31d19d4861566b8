"""The fault suite: real stages are killed, starved and fed damage; one table says what became of it."""
