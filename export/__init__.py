"""From released files to what the server loads: download, convert, verify, tiny checkpoints."""
