"""Exports of a graft: layouts for other engines, and the vLLM plugin."""
