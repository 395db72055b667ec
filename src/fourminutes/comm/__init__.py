"""Processes, their places, and the sums over them. Import from the modules: the resolver and the fits need no torch."""
