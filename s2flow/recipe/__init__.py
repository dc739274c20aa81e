"""What decides a clip: schema of the knobs, what they resolve to, their limits, identity and run id."""
