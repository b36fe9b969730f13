"""Other layouts of a graft, for engines that know nothing of insertions."""
