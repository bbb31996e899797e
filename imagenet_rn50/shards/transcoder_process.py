"""Child process that adds restart markers to one JPEG after another, as `jpegtran -restart` does.

    python transcoder_process.py LIBRARY
    stdin:  for each image its number of bytes, MCUs between markers (2 x uint32) and the JPEG
    stdout: for each image its number of bytes (uint32) and the JPEG; 0 bytes after a warning

It calls libjpeg as `jpegtran -copy all` of libjpeg-turbo does, step by step. libjpeg reports fatal
errors by ending its process, which is why this is one of its own; `lossless.py` starts it and
handles its end. It imports nothing but the standard library, so that it starts in 30 ms.
"""

from __future__ import annotations

import ctypes
import signal
import struct
import sys

# The binary interface of libjpeg.so.62: libjpeg 6b of 1998, and libjpeg-turbo by default. When an
# object is created, the library compares version and sizes with its own, and ends on a difference.
_VERSION = 62
_POINTER, _INT, _BYTE, _SHORT = ctypes.c_void_p, ctypes.c_int, ctypes.c_ubyte, ctypes.c_ushort
_COMMENT, _APP0, _APP1, _APP14 = 0xFE, 0xE0, 0xE1, 0xEE
_MAX_LENGTH = 0xFFFF  # of a marker segment


class _Errors(ctypes.Structure):
    """`jpeg_error_mgr`."""

    _fields_ = (
        ("functions", _POINTER * 5),
        ("message", _BYTE * 84),  # its code and its parameters
        ("trace_level", _INT),
        ("num_warnings", ctypes.c_long),
        ("tables", _POINTER * 4),
    )


class _Component(ctypes.Structure):
    """The beginning of `jpeg_component_info`."""

    _fields_ = (("id_and_index", _INT * 2), ("h_samp_factor", _INT), ("v_samp_factor", _INT))


class _Marker(ctypes.Structure):
    """`jpeg_marker_struct`."""

    _fields_ = (
        ("next", _POINTER),
        ("marker", _BYTE),
        ("original_length", ctypes.c_uint),
        ("data_length", ctypes.c_uint),
        ("data", _POINTER),
    )


_COMMON = (("err", _POINTER), ("common", _POINTER * 3), ("is_decompressor", _INT * 2))
_SCAN = (
    ("comps_in_scan", _INT),
    ("cur_comp_info", _POINTER * 4),
    ("mcus", _INT * 3),
    ("mcu_membership", _INT * 10),
    ("spectral", _INT * 4),
)


class _Compress(ctypes.Structure):
    """`jpeg_compress_struct`; what is not needed is grouped."""

    _fields_ = (
        *_COMMON,
        ("dest", _POINTER),
        ("image", _INT * 4),
        ("input_gamma", ctypes.c_double),
        ("precision_components_colors", _INT * 3),
        ("comp_info", ctypes.POINTER(_Component)),
        ("tables", _POINTER * 12),
        ("arithmetic", _BYTE * 48),
        ("num_scans", _INT),
        ("scan_info", _POINTER),
        ("flags", _INT * 4),
        ("smoothing_and_dct", _INT * 2),
        ("restart_interval", ctypes.c_uint),
        ("restart_in_rows", _INT),
        ("write_JFIF_header", _INT),
        ("jfif_version_and_unit", _BYTE * 3),
        ("density", _SHORT * 2),
        ("write_Adobe_marker", _INT),
        ("progress", _INT * 5),
        *_SCAN,
        ("modules", _POINTER * 9),
        ("script_space", _POINTER),
        ("script_space_size", _INT),
    )


class _Decompress(ctypes.Structure):
    """`jpeg_decompress_struct`; what is not needed is grouped."""

    _fields_ = (
        *_COMMON,
        ("src", _POINTER),
        ("image_size", _INT * 2),
        ("num_components", _INT),
        ("color_spaces_and_scale", _INT * 4),
        ("output_gamma", ctypes.c_double),
        ("output_options", _INT * 12),
        ("output", _INT * 6),
        ("colormap", _POINTER),
        ("progress", _INT * 5),
        ("coef_bits", _POINTER),
        ("tables", _POINTER * 12),
        ("data_precision", _INT),
        ("comp_info", _POINTER),
        ("progressive_and_arithmetic", _INT * 2),
        ("arithmetic", _BYTE * 48),
        ("restart_interval", ctypes.c_uint),
        ("saw_JFIF_marker", _INT),
        ("jfif_version_and_unit", _BYTE * 3),
        ("density", _SHORT * 2),
        ("saw_Adobe_marker", _INT),
        ("adobe_transform", _BYTE),
        ("ccir601_sampling", _INT),
        ("marker_list", ctypes.POINTER(_Marker)),
        ("sampling_and_rows", _INT * 4),
        ("sample_range_limit", _POINTER),
        *_SCAN,
        ("unread_marker", _INT),
        ("modules", _POINTER * 11),
    )


class _Libjpeg:
    """Add restart markers by a libjpeg.

    Args:
        path: Of the shared library.
    """

    def __init__(self, path: str) -> None:
        self._lib = ctypes.CDLL(path)
        self._lib.jpeg_std_error.restype = _POINTER
        self._lib.jpeg_read_coefficients.restype = _POINTER
        self._free = ctypes.CDLL(None).free
        self._room = ctypes.create_string_buffer(1 << 20)  # where the output is written

    def add_restart_markers(self, jpeg: bytes, blocks: int) -> bytes:
        """Return the JPEG with a marker after every `blocks` MCUs; nothing after a warning."""
        lib = self._lib
        source, target, errors = _Decompress(), _Compress(), (_Errors(), _Errors())
        source.err, target.err = (lib.jpeg_std_error(ctypes.byref(error)) for error in errors)
        for create, what in (
            (lib.jpeg_CreateDecompress, source),
            (lib.jpeg_CreateCompress, target),
        ):
            create(ctypes.byref(what), _VERSION, ctypes.c_size_t(ctypes.sizeof(what)))
        reading, writing = ctypes.byref(source), ctypes.byref(target)
        lib.jpeg_mem_src(reading, jpeg, ctypes.c_ulong(len(jpeg)))
        for marker in (_COMMENT, *range(_APP0, _APP0 + 16)):
            lib.jpeg_save_markers(reading, marker, _MAX_LENGTH)
        lib.jpeg_read_header(reading, 1)
        coefficients = ctypes.c_void_p(lib.jpeg_read_coefficients(reading))
        lib.jpeg_copy_critical_parameters(reading, writing)
        self._adjust(source, target)
        target.restart_interval, target.restart_in_rows = blocks, 0
        if len(self._room) < 2 * len(jpeg):
            self._room = ctypes.create_string_buffer(4 * len(jpeg))
        room = ctypes.addressof(self._room)
        content, size = ctypes.c_void_p(room), ctypes.c_ulong(len(self._room))
        lib.jpeg_mem_dest(writing, ctypes.byref(content), ctypes.byref(size))
        lib.jpeg_write_coefficients(writing, coefficients)
        self._copy_markers(source, target)
        lib.jpeg_finish_compress(writing)
        lib.jpeg_destroy_compress(writing)
        lib.jpeg_finish_decompress(reading)
        lib.jpeg_destroy_decompress(reading)
        result = ctypes.string_at(content, size.value)
        if content.value != room:  # the library took more
            self._free(content)
        return b"" if any(error.num_warnings for error in errors) else result

    @staticmethod
    def _adjust(source: _Decompress, target: _Compress) -> None:
        """Do what `jtransform_adjust_parameters` does where nothing is transformed."""
        if source.num_components == 1:
            target.comp_info[0].h_samp_factor = target.comp_info[0].v_samp_factor = 1
        if source.marker_list:
            first = source.marker_list[0]
            if first.marker == _APP1 and _content(first).startswith(b"Exif\0\0"):
                target.write_JFIF_header = 0

    def _copy_markers(self, source: _Decompress, target: _Compress) -> None:
        """Do what `jcopy_markers_execute` does: all but those that the library writes itself."""
        at = ctypes.cast(source.marker_list, _POINTER).value
        while at is not None:
            marker = _Marker.from_address(at)
            at = marker.next
            content = _content(marker)
            is_jfif = marker.marker == _APP0 and content.startswith(b"JFIF\0")
            is_adobe = marker.marker == _APP14 and content.startswith(b"Adobe")
            if (is_jfif and target.write_JFIF_header) or (is_adobe and target.write_Adobe_marker):
                continue
            self._lib.jpeg_write_marker(
                ctypes.byref(target), int(marker.marker), content, ctypes.c_uint(len(content))
            )


def _content(marker: _Marker) -> bytes:
    return ctypes.string_at(marker.data, marker.data_length) if marker.data_length else b""


def main() -> None:
    """Serve until stdin is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin
    libjpeg = _Libjpeg(sys.argv[1])
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while head := requests.read(8):
        size, blocks = struct.unpack("<II", head)
        reply = libjpeg.add_restart_markers(requests.read(size), blocks)
        replies.write(struct.pack("<I", len(reply)))
        replies.write(reply)
        replies.flush()


if __name__ == "__main__":
    main()
