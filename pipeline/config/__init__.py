"""Recipes: what a user writes (TOML in), validated without torch, resolved (JSON out)."""
