"""The import root: each room at the top of the tree is linked here, and imported as `cosmos_triton.<room>`."""
