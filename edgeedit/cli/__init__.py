"""Command line: parses, calls one library function, prints."""
