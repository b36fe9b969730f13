"""otter: rewards, toxicity scores and future tokens beside a frozen language model's own logits."""

__version__ = "0.1.0"
