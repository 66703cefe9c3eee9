"""Untrusted files to frames, frames to mp4."""
