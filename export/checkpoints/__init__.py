"""Released files: what there is, download, conversion to safetensors, verification."""
