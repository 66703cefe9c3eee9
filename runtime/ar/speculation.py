"""The limit of the speculation window. Free of torch, since the command line reads it.

The window is fixed for the life of a server: in bf16 the tokens of a seed may depend on it, because products of another
shape round differently.
"""

MAX_WINDOW = 64  # tokens a decode step may verify per slot; longer queries are compute-bound, like a prefill
