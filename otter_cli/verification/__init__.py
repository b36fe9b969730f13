"""The proof that a graft gives its base's logits, bit for bit. `run_verification.verify` runs it.

The levels, in order: static, structure (with trace), compare (over a grid), poison, and bisect
where something differs. docs/method.md, "Exactness: what verify proves", says what each shows.
"""
