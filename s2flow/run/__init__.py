"""Running a config: which clips are missing, how each is made and recorded, and by which processes."""
