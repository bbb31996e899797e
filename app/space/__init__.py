"""What app.py serves: a picture is opened, classified, explained, shown.

pictures  a file of any kind -> an upright RGB picture, or a sentence that says why not
model     a folder or a Hub id -> a classifier -> class probabilities
heatmap   Grad-CAM: which parts of the picture speak for a class
card      the model's README.md -> harmless HTML
batch     files -> rows -> CSV
views     results -> HTML
page      tabs (one_picture, many_pictures), look, limits
"""

import os

# Before Gradio and huggingface_hub are imported: nobody is told that this runs.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
