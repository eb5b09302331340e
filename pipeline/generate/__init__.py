"""Block diffusion run backwards: a student writes a response, block after block."""
