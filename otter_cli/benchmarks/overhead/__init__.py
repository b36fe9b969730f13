"""`otter bench overhead`: what an insertion costs, beside what this machine allows."""
