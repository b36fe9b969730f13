"""Speculative decoding: drafters, acceptance, and exact rescoring of near-ties."""
