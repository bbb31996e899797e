"""JPEG: one header parser, cropping at restart markers, decoding."""
