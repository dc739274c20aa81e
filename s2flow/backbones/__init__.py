"""Video models behind one protocol (`base.py`), one adapter a family."""
