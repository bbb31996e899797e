"""Restart markers and upright images without loss: the coefficients are moved, never changed.

libjpeg-turbo's program `jpegtran` does both and defines the result. Markers, which almost every
image gets, come from one child process that calls the libjpeg of Pillow's wheel, and which costs
less than half of a `jpegtran` process for each image (see `transcoder_process`). It is used only if
its bytes are those of `jpegtran`, and `jpegtran` has the last word on every image over which it
fails.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import struct
import subprocess
import sys
import threading
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path

from PIL import Image

from imagenet_rn50.shards import transcoder_process
from imagenet_rn50.utils.errors import InputError

PROGRAM = "jpegtran"
_LIBRARY = "libjpeg.so.62"
_SECONDS = 60  # an image takes some milliseconds
# Its buffers are as large as an image's coefficients: glibc would return them to the kernel after
# each image, which costs a quarter of its time in page faults.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(8 << 20),
}
# By EXIF orientation; each undoes how the image was stored.
_TURNS = {
    2: ("-flip", "horizontal"),
    3: ("-rotate", "180"),
    4: ("-flip", "vertical"),
    5: ("-transpose",),
    6: ("-rotate", "90"),
    7: ("-transverse",),
    8: ("-rotate", "270"),
}


class JpegtranError(ValueError):
    """`jpegtran` did not accept the image; the message is its own."""


def is_installed() -> bool:
    """Return whether `jpegtran` can be called."""
    return shutil.which(PROGRAM) is not None


def require_installed() -> None:
    """Raise an error if restart markers are asked for and cannot be made.

    Raises:
        InputError: When `jpegtran` is missing.
    """
    if not is_installed():
        raise InputError(
            "restart markers need the program jpegtran",
            expected="jpegtran on the PATH",
            fix="apt-get install libjpeg-turbo-progs, or pack without: --restart-blocks none",
        )


def add_restart_markers(jpeg: bytes, blocks: int) -> bytes:
    """Write the entropy-coded data anew, with a restart marker after every `blocks` MCUs.

    A progressive image becomes a baseline one. The coefficients, hence the pixels, stay the same,
    and so do all markers.

    Args:
        jpeg: An undamaged JPEG.
        blocks: MCUs from one restart marker to the next.

    Raises:
        JpegtranError: When `jpegtran` complains, even if it still writes output.
    """
    with _lock:
        transcoder = _shared.started()
        marked = None if transcoder is None else transcoder.add_restart_markers(jpeg, blocks)
    return marked or add_by_jpegtran(jpeg, blocks)


def add_by_jpegtran(jpeg: bytes, blocks: int) -> bytes:
    """Do the same by one process for this image.

    Raises:
        JpegtranError: When `jpegtran` complains, even if it still writes output.
    """
    return _run(jpeg, "-restart", f"{blocks}B")


def turn_upright(jpeg: bytes, orientation: int) -> bytes:
    """Rearrange the coefficients so that an image is stored upright; its metadata stays as it is.

    Args:
        jpeg: An undamaged JPEG.
        orientation: Its EXIF orientation, 2 to 8.

    Raises:
        JpegtranError: When `jpegtran` is missing or complains, as it does where blocks that are cut
            by an edge would have to move to another one.
    """
    if not is_installed():
        raise JpegtranError(f"{PROGRAM} is not installed")
    return _run(jpeg, "-perfect", *_TURNS[orientation])


def _run(jpeg: bytes, *options: str) -> bytes:
    done = subprocess.run(
        [PROGRAM, "-copy", "all", *options],
        input=jpeg,
        capture_output=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise JpegtranError(message[-1] if message else f"jpegtran exit code {done.returncode}")
    return done.stdout


def why_slow() -> str | None:
    """Return why each image needs a `jpegtran` process of its own; None if it does not.

    Raises:
        JpegtranError: When `jpegtran` fails on a sound image.
    """
    _shared.started()
    return _shared.reason


def shut_down() -> None:
    """End the child process; the next image starts another."""
    _shared.stop()


class _Transcoder:
    """The child process that adds restart markers.

    Args:
        library: Path or name of a libjpeg with the interface of version 62.
    """

    def __init__(self, library: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", transcoder_process.__file__, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # jpegtran repeats what matters
            env={**os.environ, **_KEEP_MEMORY},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self.pid = os.getpid()

    def add_restart_markers(self, jpeg: bytes, blocks: int) -> bytes:
        """Return the JPEG with markers; nothing if the library complains, ends or hangs."""
        try:
            self._requests.write(struct.pack("<II", len(jpeg), blocks))
            self._requests.write(jpeg)
            self._requests.flush()
            head = self._replies.read(4) if wait([self._replies.fileno()], _SECONDS) else b""
            (size,) = struct.unpack("<I", head)
            marked = self._replies.read(size)
            if len(marked) == size:
                return marked
        except (OSError, struct.error):
            pass
        except BaseException:  # such as Ctrl-C: the next reply would be that to this image
            self.stop()
            raise
        self.stop()
        return b""

    @property
    def is_running(self) -> bool:
        """Whether it takes images."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process, which has nothing to lose."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._replies):
            try:
                pipe.close()
            except OSError:  # what it did not read is lost
                continue


class _Shared:
    """The transcoder of this process, started when the first image needs it.

    Attributes:
        reason: Why it is not used; None if it is, or was not needed yet.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._transcoder: _Transcoder | None = None
        self._left_to_parents: list[_Transcoder] = []

    def started(self) -> _Transcoder | None:
        """Return a transcoder that runs; None if it cannot be used."""
        if self._transcoder is not None and self._transcoder.pid != os.getpid():  # after a fork
            self._left_to_parents.append(self._transcoder)
            self._transcoder = None
        if self._transcoder is not None:
            if self._transcoder.is_running:
                return self._transcoder
            self._transcoder.stop()
        if self.reason is None:
            self._transcoder, self.reason = _start()
        return self._transcoder

    def stop(self) -> None:
        """End it; an image that comes later starts it again."""
        if self._transcoder is not None and self._transcoder.pid == os.getpid():
            self._transcoder.stop()
            self._transcoder = None
        self.reason = None


_shared = _Shared()
_lock = threading.Lock()  # one image at a time
atexit.register(shut_down)


def _start() -> tuple[_Transcoder | None, str | None]:
    """Return a transcoder, or why there is none.

    Raises:
        JpegtranError: When `jpegtran` fails on a sound image.
    """
    library = find_library()
    probe = _probe()
    expected = add_by_jpegtran(probe, 3)
    transcoder = _Transcoder(library)
    found = transcoder.add_restart_markers(probe, 3)
    if found == expected:
        return transcoder, None
    transcoder.stop()
    if not found:
        return None, f"{library} cannot be called"
    return None, f"{library} writes other bytes than {shutil.which(PROGRAM)}"


def find_library() -> str:
    """Return the path of the libjpeg in Pillow's wheel, else the name of the system's."""
    for file in metadata.files("pillow") or []:
        if file.name.startswith("libjpeg") and ".62" in file.name:
            return str(Path(str(file.locate())))
    return _LIBRARY


def _probe() -> bytes:
    """Return a small JPEG with what is treated in its own way: markers, edges, subsampling."""
    image = Image.linear_gradient("L").resize((75, 45))
    colored = Image.merge("RGB", (image, image.rotate(90), image.rotate(180)))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a probe"
    colored.save(buffer, "JPEG", exif=exif, icc_profile=b"profile", comment=b"a comment")
    return buffer.getvalue()
