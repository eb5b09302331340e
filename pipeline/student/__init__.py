"""The student: a block-diffusion language model on plain transformers weights."""
