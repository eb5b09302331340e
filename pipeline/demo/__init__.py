"""The bundled small models, the real text they learn from, and how both were made."""
