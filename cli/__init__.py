"""Every command of `cosmos-triton`. The only room that prints results and decides exit codes."""
