"""Prompt and video guardrails, and the runner that fails closed."""
