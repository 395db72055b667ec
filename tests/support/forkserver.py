"""Processes that start quickly: forked from one that has imported everything heavy once."""

import multiprocessing

# One list for all tests: the server is one for the whole session, and what it imports is decided before its start.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "fourminutes.cli", "fourminutes.train"])
