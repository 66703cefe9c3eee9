"""The GPU memory plan: footprints, available memory, and the search for the fastest plan that fits."""
