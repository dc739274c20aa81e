"""`python -m s2flow.preferences`: see `s2flow.report.preferences`."""

from s2flow.report.preferences import main

if __name__ == "__main__":
    main()
