"""Metrics by METHOD's definitions: what a sample or a prompt's samples are worth."""
