"""The Space: open an image, classify it, explain the result and show it.

images       an uploaded file -> an upright RGB image, or ImageError
model        folders or Hub ids -> classifiers -> class probabilities
calibration  is the image unlike those that the model saw?
heatmap      Grad-CAM: the parts of the image that raise a class's score
card         the model's README.md -> sanitized HTML with its curves
batch        files -> rows -> CSV
views        results -> HTML
page         tabs (one_image, many_images), look, limits
"""

import contextlib
import ctypes
import os

_M_ARENA_MAX, _NUM_ARENAS = -8, 2  # of glibc's malloc.h

# Disable telemetry. Gradio and huggingface_hub read these variables when they are imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Read when torch is imported: its waiting threads leave their core to the other request.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Otherwise each thread that decodes images keeps freed memory of its own, and the peak rises with
# the number of visitors. Called before threads start.
with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _NUM_ARENAS)
