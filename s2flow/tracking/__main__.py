"""`python -m s2flow.tracking`: see `tracker`."""

from s2flow.tracking.tracker import main

if __name__ == "__main__":
    main()
