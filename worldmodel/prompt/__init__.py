"""Text to prompt embedding: the small encoder whose vectors condition the worlds."""
