"""A package, so that its cluster is gone before other tests run."""
