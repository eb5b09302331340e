"""From a conversation to tokens on both sides and the chunks that align them (TIDE section 2)."""
