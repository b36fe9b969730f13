"""Checkpoint folders of safetensors: strict headers, lazy tensors, streamed atomic writes."""
