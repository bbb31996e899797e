"""What every layer uses: files, storage, errors, messages, signals."""
