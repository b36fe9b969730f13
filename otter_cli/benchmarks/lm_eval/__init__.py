"""The bridge to EleutherAI's lm-evaluation-harness: grafts as its models, and its documents as a
test of identity. Importing this imports neither the harness nor torch."""
