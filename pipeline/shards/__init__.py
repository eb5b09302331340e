"""A run of stage 1 as whoever looks on or shares it sees it: what is to do, made, and left."""
