"""Patch room: the signed patch file, its reader, writer and keys (see FORMAT.md). Knows only names and digests."""
