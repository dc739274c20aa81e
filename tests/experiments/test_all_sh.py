"""experiments/all.sh: every experiment and table, on through failures, non-zero at the end, again."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *{broken}*) exit 3;; esac
echo "a table"
"""


def run_all(tmp_path, broken, *words):
    """The script with a `python` that writes down what it was asked; (exit code, stderr, calls)."""
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir(exist_ok=True)
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    fake.write_text(FAKE.format(log=log, broken=broken))
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "experiments" / "all.sh", tmp_path / "my runs", *words],
        env=os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr, log.read_text().splitlines()


def test_a_failure_stops_nothing_and_is_named_at_the_end(tmp_path):
    code, err, calls = run_all(tmp_path, "experiment=table2")
    assert code == 1 and "failed: table2;" in err
    asked = " ".join(calls)
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f"experiment={path.stem} " in asked
    assert "claims.py --run" in asked and "-m s2flow.report" in asked
    assert "analysis/export.py --runs" in asked
    assert (tmp_path / "my runs" / "tables" / "table4.tex").read_text() == "a table\n"


def test_a_table_that_failed_leaves_no_file_and_the_rest_go_on(tmp_path):
    code, err, calls = run_all(tmp_path, "table3")
    assert code == 1 and "table3.html" in err and "table4" not in err.split("failed:")[1]
    assert not (tmp_path / "my runs" / "tables" / "table3.md").exists()


def test_what_would_start_over_is_done_once_and_failures_are_tried_again(tmp_path):
    code, _, first = run_all(tmp_path, "--flow")
    assert code == 1
    code, err, second = run_all(tmp_path, "nothing")
    assert code == 0 and not err
    card = [c for c in first if "backbone_card" in c]
    assert len(card) == 1 and not [c for c in second if "backbone_card" in c]
    assert [c for c in second if "--flow gaussian" in c]  # it had failed
    assert [c for c in second if "experiment=table1" in c]  # the store itself skips clips


def test_words_make_it_smaller_and_leave_out_what_needs_its_size(tmp_path):
    code, _, calls = run_all(tmp_path, "nothing", "prompts.count=1")
    assert code == 0 and not [c for c in calls if "claims.py" in c]
    assert all("prompts.count=1" in c for c in calls if "experiment=" in c)
