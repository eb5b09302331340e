"""One page about many students: what was compared, what it gained, and how sure that is."""
