"""tidecache: distil diffusion language models from a cache of the teacher's answers."""
