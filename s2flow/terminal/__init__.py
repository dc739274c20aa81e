"""Output at the terminal: messages, progress, the closing table."""
