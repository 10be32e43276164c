"""Published figures, measured again."""
