"""Hostile files from a seeded generator: damaged images, polyglots, bombs, names with paths."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
from PIL import Image

NAMES = (
    "photo.jpg", "../../escaped.png", "..\\..\\escaped.png", "/etc/escaped", "a/b/escaped.gif",
    "C:\\escaped.webp", "%2e%2e%2fescaped.jpg", "nul\x00.jpg", "-rf.jpg", "$(touch escaped).png",
    "'; drop table.gif", "<img src=x onerror=alert(1)>.png", "line\nbreak.jpg", "\u202egpj.exe",
    "x" * 300 + ".jpg", ".jpg", "..", "no ending", "ångström.webp", "CON", "image.svg", "page.html",
)  # fmt: skip

SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40" onload="alert(1)">
<script>alert(2)</script><image href="http://outside.example/a.png"/></svg>"""
BOMB_SVG = b"""<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<svg xmlns="http://www.w3.org/2000/svg"><text>&b;</text></svg>"""


def hostile_files(seed):
    """Yield (name, content) for ever; the same ones for the same seed."""
    rng = random.Random(seed)
    images = intact_images()
    makers = [damaged] * 6 + [polyglot, polyglot, bomb, other_type]
    while True:
        yield rng.choice(NAMES), rng.choice(makers)(rng, images)


def intact_images():
    """Return small images of several formats and modes, by format."""
    rough = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    image = Image.fromarray(rough).resize((60, 40), Image.Resampling.BICUBIC)
    rgb, frames = image.convert("RGB"), [image.rotate(angle).convert("P") for angle in (90, 180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "JPEG": [
            saved(rgb, "JPEG", exif=exif),
            saved(rgb, "JPEG", progressive=True),
            saved(rgb.convert("CMYK"), "JPEG"),
            saved(rgb.convert("L"), "JPEG", comment=b"a comment"),
        ],
        "PNG": [
            saved(image, "PNG"),
            saved(rgb.convert("P"), "PNG", transparency=3),
            saved(rgb.convert("I;16"), "PNG"),
            saved(rgb, "PNG", save_all=True, append_images=[image.convert("RGB").rotate(90)]),
        ],
        "WEBP": [
            saved(rgb, "WEBP"),
            saved(image, "WEBP", lossless=True),
            saved(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
        ],
        "GIF": [
            saved(rgb.convert("P"), "GIF"),
            saved(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=0),
        ],
    }


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pick(rng, images):
    return rng.choice(images[rng.choice(list(images))])


def damaged(rng, images):
    """Return an image with one to four random changes."""
    content = bytearray(pick(rng, images))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) or 1)
        change = rng.randrange(6)
        if change == 0:
            del content[at:]
        elif change == 1:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif change == 2:  # lengths and sizes of headers
            content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
        elif change == 3:
            del content[at : at + rng.randrange(1, 64)]
        elif change == 4:
            content[at:at] = rng.randbytes(rng.randrange(1, 64))
        else:  # the end of another image
            other = pick(rng, images)
            content[at:] = other[rng.randrange(len(other)) :]
    return bytes(content)


def polyglot(rng, images):
    """Return an image that is another file, too, or a file that has the magic of an image."""
    image, archive = pick(rng, images), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../escaped.txt", "escaped")
    page = b"<!doctype html><script>alert(1)</script>"
    return rng.choice(
        [
            image + archive.getvalue(),
            image + page,
            image + b"<?php system('touch escaped'); ?>",
            b"GIF89a/*" + image + b"*/=1;alert(1)",
            b"\xff\xd8\xff\xe0" + page,
            b"\x89PNG\r\n\x1a\n" + archive.getvalue(),
            b"RIFF" + struct.pack("<I", len(page)) + b"WEBP" + page,
            b"%PDF-1.7\n" + image,
            b"#!/bin/sh\ntouch escaped\n" + image,
        ]
    )


def png(width, height, *chunks):
    """Return a PNG with an arbitrary size in its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checksum
    return content


@cache
def compressed_zeros():
    return zlib.compress(bytes(30_000_000))


def bomb(rng, images):
    """Return a small file that asks for much memory."""
    zeros = compressed_zeros()
    jpeg = images["JPEG"][0]
    frame = jpeg.index(b"\xff\xc0") + 5  # height and width
    gif = images["GIF"][0]
    bmp = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6)
    return rng.choice(
        [
            png(60_000, 60_000, (b"IDAT", zeros)),
            png(2**31 - 1, 1, (b"IDAT", zeros)),
            png(40, 40, (b"zTXt", b"k\x00\x00" + zeros), (b"IDAT", zeros)),
            png(40, 40, (b"iCCP", b"k\x00\x00" + zeros), (b"IDAT", zeros)),
            jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :],
            gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
            bmp,
            gzip.compress(bytes(10_000_000)),
            b"P6 60000 60000 255\n" + bytes(100),
        ]
    )


def other_type(rng, images):
    """Return a file that is no image."""
    return rng.choice(
        [
            SVG,
            gzip.compress(SVG),
            BOMB_SVG,
            b"",
            b"\x00",
            b"just text\n",
            rng.randbytes(2000),
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(escaped) (w) file closefile\n",
            b"MZ" + bytes(200),
            b"ftypheic" * 9,
            b"<html></html>",
            b"II*\x00" + bytes(60),
        ]  # fmt: skip
    )
