"""Prompt and video guardrails. They fail closed: a check that cannot decide blocks."""
