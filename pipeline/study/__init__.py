"""The study: which objective and which knobs of a cache help a student, over several seeds."""
