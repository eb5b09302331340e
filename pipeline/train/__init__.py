"""Training the student on transformers.Trainer, blind to which objective is in force."""
