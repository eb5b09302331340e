"""Many students from one cache: which runs a sweep has, and how they compare."""
