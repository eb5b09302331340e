"""How good a student is: the likelihood of held-out text, under masks that are stored."""
