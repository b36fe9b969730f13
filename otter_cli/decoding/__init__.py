"""Decoding: one session for plain, guided and speculative generation."""
