"""What is kept of a teacher's distributions, and how it becomes dense rows again."""
