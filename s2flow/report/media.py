"""Addresses of videos and poster frames: linked, copied beside the page, or embedded."""

import base64
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from s2flow.store import written_whole
from s2flow.video import Undecodable, first_frame

POSTER = 320  # pixels on the longer side: 2 KB of a 64x96 clip, some 15 KB of larger ones


@dataclass(frozen=True)
class Media:
    """The media of a page in `folder`; how: link, copy or embed.

    Copies are in clips/<run>/ and posters/<run>/; existing ones with the clip's size and time are not
    copied again. All methods raise OSError.
    """

    folder: Path
    how: str

    def addresses(self, video: Path) -> dict[str, str]:
        """`src` of a video, and its `poster` if the video can be decoded."""
        run, name = video.parent.parent.name, video.name
        if self.how == "embed":
            src = _inline("video/mp4", video.read_bytes())
        elif self.how == "copy":
            src = self._copied(video, Path("clips", run, name))
        else:
            way = os.path.relpath(video.parent.resolve() / name, self.folder.resolve())
            src = _quoted(Path(way))
        poster = self._poster(video, Path("posters", run, name).with_suffix(".jpg"))
        return {"src": src} | ({"poster": poster} if poster else {})

    def _copied(self, video: Path, place: Path) -> str:
        target = self.folder / place
        if not _same(video, target):
            with written_whole(target) as temporary:
                shutil.copyfile(video, temporary)
            _date(target, video)
        return _quoted(place)

    def _poster(self, video: Path, place: Path) -> str | None:
        target = self.folder / place
        if self.how == "copy" and target.exists() and _times(target) == _times(video):
            return _quoted(place)
        try:
            picture = _jpeg(video)
        except Undecodable:
            return None
        if self.how != "copy":
            return _inline("image/jpeg", picture)
        with written_whole(target) as temporary:
            temporary.write_bytes(picture)
        _date(target, video)
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


def _times(path: Path) -> int:
    return path.stat().st_mtime_ns


def _same(video: Path, copy: Path) -> bool:
    sizes = copy.exists() and video.stat().st_size == copy.stat().st_size
    return sizes and _times(video) == _times(copy)


def _date(path: Path, like: Path) -> None:
    os.utime(path, ns=(_times(like), _times(like)))
