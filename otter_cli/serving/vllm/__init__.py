"""The plugin for vLLM: a graft's streams inside the engine's model, its signals in the answer."""
