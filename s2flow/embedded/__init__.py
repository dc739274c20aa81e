"""The embedded backbone: a toy world, a small Wan that was trained on it, and its weights."""
