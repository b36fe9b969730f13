"""`otter serve`: a server with OpenAI's API in the toolkit's own decoding session."""
