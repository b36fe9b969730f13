"""What every other package builds on: errors, strict and atomic files, digests and messages."""
