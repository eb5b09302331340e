"""The noise process and the attention of block diffusion (TIDE section 2)."""
