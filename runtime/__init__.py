"""What keeps a run alive: its flags, its files, its progress, its signals. Knows nothing of the models."""
