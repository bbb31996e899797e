"""Use the page in headless Chromium, without a model: what it says, and what it reads of files."""

import base64
import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from imagenet_rn50.model import load_processor
from space.images import open_image
from tests.browser import DESKTOP, MARKS, PHONE
from tests.web.conftest import visit

pytestmark = [*MARKS, pytest.mark.timeout(600)]


def choose(page, name, content, mime="image/jpeg"):
    page.set_input_files("#file", {"name": name, "mimeType": mime, "buffer": content})


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def photo(width=640, height=480):
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return rough.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_the_page_explains_itself_and_fits_the_window(browser, stand_in_page, size, scheme):
    with visit(browser, stand_in_page, size, scheme) as page:
        expect(page.get_by_text("never leaves this device")).to_be_visible()
        expect(page.locator("#intro")).to_contain_text(
            "5 classes (tabby, <b>bold</b>, crane, a bird"
        )
        rows = page.get_by_role("table").get_by_role("row")
        expect(rows.filter(has_text="8 bits")).to_contain_text("25.6 MB")
        expect(rows.filter(has_text="8 bits")).to_contain_text("76.54%")
        expect(rows.filter(has_text="8 bits")).to_contain_text("99.999%")  # not 100%
        expect(page.locator("#measured")).to_contain_text("50,000 images of the validation split")
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        is_dark = sum(int(part) for part in background.strip("rgb()").split(",")) < 150
        assert is_dark == (scheme == "dark")


NO_IMAGES = {
    "notes.txt": (b"no image at all", "not an image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"%PDF-1.7 renamed", "not an image"),
    "cut.png": (encoded(photo(), "PNG")[:60], "PNG image is damaged"),
    "half.jpg": (encoded(photo(), "JPEG")[:9000], "JPEG image is damaged"),
    "broken.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * 500, "JPEG image is damaged"),
    "scan.tif": (encoded(photo(), "TIFF"), "cannot open TIFF images"),
    "new.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 100, "cannot open HEIC images"),
}


def test_a_file_that_is_no_image_gets_a_message_and_the_page_stays(browser, stand_in_page):
    with visit(browser, stand_in_page) as page:
        for name, (content, message) in NO_IMAGES.items():
            choose(page, name, content)
            expect(page.get_by_role("alert")).to_contain_text(message)
            expect(page.locator("#image")).to_be_hidden()
            expect(page.get_by_text("Choose an image")).to_be_visible()
            expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")


def test_a_model_that_does_not_load_is_reported_with_a_way_to_try_again(browser, stand_in_page):
    with visit(browser, stand_in_page) as page:
        choose(page, "photo.jpg", encoded(photo(), "JPEG"))
        again = page.get_by_role("button", name="Try again")
        expect(again).to_be_visible()
        again.click()
        expect(again).to_be_visible()


# What the page's worker does to a file, up to the pixels that the model sees.
READ = """async ([content, preprocessing]) => {
    const { decode, planCrop, reader, resizeCrop } = await import("./pixels.js");
    const image = await decode(new Blob([Uint8Array.from(atob(content), c => c.charCodeAt(0))]));
    const plan = planCrop(image.width, image.height, preprocessing);
    const pixels = resizeCrop(reader(image), plan, preprocessing.resample);
    return btoa(Array.from(pixels, (value) => String.fromCharCode(value)).join(""));
}"""


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), "JPEG", quality=95, exif=exif)


def with_alpha():
    image = photo().convert("RGBA")
    gradient = np.linspace(0, 255, image.width, dtype=np.uint8)
    image.putalpha(Image.fromarray(np.tile(gradient, (image.height, 1))))
    return image


def sixteen_bits():
    wide = np.linspace(0, 65535, 640, dtype=np.uint16)
    return Image.fromarray(np.tile(wide, (480, 1)))


def with_profile():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    return encoded(photo(), "PNG", icc_profile=profile.tobytes())


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(photo(), "JPEG", quality=90),
    "JPEG 4:4:4": lambda: encoded(photo(501, 333), "JPEG", quality=90, subsampling=0),
    "progressive JPEG": lambda: encoded(photo(), "JPEG", progressive=True),
    "gray JPEG": lambda: encoded(photo().convert("L"), "JPEG"),
    "PNG": lambda: encoded(photo(300, 700), "PNG"),
    "PNG with alpha": lambda: encoded(with_alpha(), "PNG"),
    "gray PNG with alpha": lambda: encoded(with_alpha().convert("LA"), "PNG"),
    "palette PNG": lambda: encoded(photo().quantize(64), "PNG"),
    "16-bit PNG": lambda: encoded(sixteen_bits(), "PNG"),
    "PNG with a profile": with_profile,
    "lossless WebP": lambda: encoded(photo(), "WEBP", lossless=True),
    "GIF": lambda: encoded(photo(), "GIF"),
    "BMP": lambda: encoded(photo(), "BMP"),
    **{f"orientation {number}": partial(oriented, number) for number in range(2, 9)},
}


def test_files_of_every_kind_give_the_processors_pixels_within_one_level(
    browser, stand_in, stand_in_page, tmp_path
):
    processor = load_processor(stand_in)
    mean, std = (
        np.reshape(value, (3, 1, 1)) for value in (processor.image_mean, processor.image_std)
    )
    preprocessing = {"resize": 256, "crop": {"height": 224, "width": 224}, "resample": "bilinear"}
    found = {}
    with visit(browser, stand_in_page) as page:
        for kind, content in FILES.items():
            path = tmp_path / "image"
            path.write_bytes(content())
            inputs = processor(open_image(path), return_tensors="np")["pixel_values"][0]
            theirs = np.rint((inputs * std + mean) * 255).transpose(1, 2, 0)
            text = base64.b64encode(path.read_bytes()).decode()
            pixels = base64.b64decode(page.evaluate(READ, [text, preprocessing]))
            ours = np.frombuffer(pixels, np.uint8).reshape(theirs.shape)
            found[kind] = np.abs(ours - theirs).max()
    assert {kind: worst for kind, worst in found.items() if worst > 1} == {}
