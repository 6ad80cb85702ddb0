"""Random messages, mutated and cut anywhere: the relay must make of them what it always does."""
