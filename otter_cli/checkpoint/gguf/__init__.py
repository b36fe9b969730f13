"""GGUF files, llama.cpp's format, imported as checkpoint folders."""
