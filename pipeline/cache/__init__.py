"""Where the two stages meet: immutable shards on disk, and a ledger of those that are finished."""
