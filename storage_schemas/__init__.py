"""What is stored and what travels between modules: versioned, validated, free of torch."""
