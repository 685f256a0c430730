"""A series and its kernel with counters in; which lines of which patch ran under what, out."""
