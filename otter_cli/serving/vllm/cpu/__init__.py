"""What only a CPU engine needs: deferred layers in native code, and its KV cache in memory."""
