"""Signals: the named outputs of heads, such as a reward, class logits or future tokens."""
