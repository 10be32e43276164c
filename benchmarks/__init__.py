"""How fast metalit is, next to other libraries and to itself: `python -m benchmarks --help`."""
