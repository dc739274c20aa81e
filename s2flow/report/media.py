"""Addresses of videos and poster frames: linked, copied beside the page, or embedded."""

import base64
import contextlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from s2flow.store import written_whole
from s2flow.video import Undecodable, first_frame

POSTER = 320  # pixels on the longer side: 2 KB of a 64x96 clip, some 15 KB of larger ones


@dataclass(frozen=True)
class Media:
    """The media of a page in `folder`; how: "copy" or "embed", else they are linked.

    Copies are in clips/<run>/ and posters/<run>/; those with the clip's time are not made again.
    """

    folder: Path
    how: str

    def addresses(self, video: Path) -> dict[str, str]:
        """`src` of a video, and its `poster` if the video can be decoded. Raises OSError."""
        run, copied, found = video.parents[1].name, self.how == "copy", {}
        if copied:
            place = Path("clips", run, video.name)
            found["src"] = self._copy(video, place, lambda path: shutil.copyfile(video, path))
        elif self.how == "embed":
            found["src"] = _inline("video/mp4", video.read_bytes())
        else:
            way = os.path.relpath(video.parent.resolve() / video.name, self.folder.resolve())
            found["src"] = _quoted(Path(way))
        with contextlib.suppress(Undecodable):
            place = Path("posters", run, f"{video.stem}.jpg")
            poster = lambda path: path.write_bytes(_jpeg(video))  # noqa: E731
            inline = None if copied else _inline("image/jpeg", _jpeg(video))
            found["poster"] = inline or self._copy(video, place, poster)
        return found

    def _copy(self, video: Path, place: Path, make: Callable[[Path], object]) -> str:
        target, time = self.folder / place, video.stat().st_mtime_ns
        if not target.exists() or target.stat().st_mtime_ns != time:
            with written_whole(target) as temporary:
                make(temporary)
                os.utime(temporary, ns=(time, time))
        return _quoted(place)


def _jpeg(video: Path) -> bytes:
    image = Image.fromarray(first_frame(video))
    image.thumbnail((POSTER, POSTER))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, subsampling=0)
    return file.getvalue()


def _inline(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def _quoted(way: Path) -> str:
    return quote(os.fsencode(way.as_posix()))
