"""The teacher: models that answer masked positions, behind one small protocol."""
