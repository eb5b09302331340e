"""What a recipe will cost, before anything is spent: counts, bytes, tokens and hours."""
