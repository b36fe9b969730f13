"""Import of GGUF files, the format of llama.cpp, as checkpoint folders."""
