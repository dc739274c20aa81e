"""What an offline wandb run holds, read back from its file: protobuf records in a LevelDB log."""

import json
from pathlib import Path

BLOCK, IDENT = (
    32768,
    b":W&B",
)  # chunks never cross a block; the file's own head counts as its first 7


def records(path):
    """The wandb.proto records of one .wandb file, checksums apart."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = Path(path).read_bytes(), 7, b"", []
    assert data[:4] == IDENT
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too small for a chunk's head
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


class Offline:
    """One offline run: `config`, `history` (rows in order), `summary`, `run` (the record), `folder`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (path,) = self.folder.glob("*.wandb")
        self.config, self.history, self.summary, self.ended = {}, [], {}, None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _items(record.run.config.update)
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "exit":
                self.ended = record.exit.exit_code

    def table(self, name):
        """(columns, rows) of a table of the summary, from the file that it names."""
        found = json.loads((self.folder / "files" / self.summary[name]["path"]).read_text())
        return found["columns"], found["data"]

    def media(self, prefix):
        """{key: file} of the history's videos or pictures under a prefix."""
        return {
            k: self.folder / "files" / v["path"]
            for row in self.history
            for k, v in row.items()
            if k.startswith(prefix) and isinstance(v, dict)
        }


def _items(items):
    """{key: value}; a value that came in parts, as media do, is put together."""
    found = {}
    for i in items:
        if len(i.nested_key) > 1:
            found.setdefault(i.nested_key[0], {})[i.nested_key[1]] = json.loads(i.value_json)
        else:
            found[i.key or i.nested_key[0]] = json.loads(i.value_json)
    return found


def offline_runs(folder):
    """{run id: its offline runs}, oldest first."""
    found = {}
    for path in sorted(Path(folder).glob("offline-run-*")):
        found.setdefault(path.name.split("-")[-1], []).append(Offline(path))
    return found
