"""Label your own videos in a notebook, train on them, and see what the unlabelled ones add."""
