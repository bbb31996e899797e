"""Speed, always as a ratio to something known, measured interleaved in one run."""
