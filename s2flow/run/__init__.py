"""One config's work: which clips, how each is made and recorded, and by how many processes."""
