"""What decides a clip: schema of the knobs, what they resolve to, their limits, identity and run id."""

from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"  # a link, which a wheel turns into a folder
if not CONF.is_dir():  # a checkout where links are text files
    CONF = Path(__file__).parents[2] / "conf"
