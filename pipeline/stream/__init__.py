"""From a cache to batches: replays what is stored, and draws nothing but the order."""
