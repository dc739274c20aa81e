"""What a person at the terminal sees: messages, progress, the closing table."""
