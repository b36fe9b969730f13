"""Guides: scores of possible next tokens that are added to the base's logits."""
