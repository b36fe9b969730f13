"""What every other package stands on: errors, digests, atomic files, provenance, talk on stderr."""
