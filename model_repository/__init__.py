"""The Triton models, and what their model.py files share. Imported inside the server's Python stubs only."""
