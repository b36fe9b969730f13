"""The wide layout: base and insertion in one widened checkpoint, for engines without insertions."""
