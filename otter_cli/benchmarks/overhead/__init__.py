"""What an insertion costs beside its base, beside what the machine would allow."""
