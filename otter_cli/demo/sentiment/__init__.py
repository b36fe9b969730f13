"""The demo on a real model: steer the sentiment of what it writes, token by token."""
