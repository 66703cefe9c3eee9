"""The tiny deployments: checkpoints made on the spot, sample media, and the demo."""
