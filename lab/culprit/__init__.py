"""A failure and where it may come from go in, the change that brought it goes out: `lab bisect`."""
