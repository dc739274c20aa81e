"""The store: runs/<run_id>/ holds a recipe, clips, contact sheets and one record per clip.

    runs/<run_id>/recipe.json              the resolved recipe
                  clips/<key>.mp4          the video;  <key>.low.mp4 the LR one
                  sheets/<key>.png         LR and HR frames side by side
                  latents/<key>.safetensors  the final latent, with keep_latents=true
                  windows/<key>.npz        its windows, where they are boxes; see windowmap.py
                  records/<key>.json       written last: a clip is finished when its record exists
                  scores/*.jsonl           verdicts of scorers, see scorebook.py
                  failures/<key>.json      a failed clip: traceback, number and times of tries
                  index.parquet            rows of the records, once there are many; see index.py

The key is a hash of prompt text and seed. Every file is written to a temporary name and renamed, so
a kill costs at most the clip in progress, and any number of workers may share a folder. All files of a
clip are complete before the first is renamed, and the record is renamed last: after a kill in between,
the next start renames the record if it has the hash of the video. The records are the source of truth;
the index only saves reading them, and may be removed.

`python -m s2flow.store ls|verify|gc|merge|export` looks after a store; see __main__.py.
"""

from s2flow.store.files import sha256_of, without_nan, write_json, written_whole
from s2flow.store.index import load_records
from s2flow.store.records import STAGES, clip_key, generation_seconds, read_record, read_run
from s2flow.store.run import Store

__all__ = [
    "STAGES",
    "Store",
    "clip_key",
    "generation_seconds",
    "load_records",
    "read_record",
    "read_run",
    "sha256_of",
    "without_nan",
    "write_json",
    "written_whole",
]
