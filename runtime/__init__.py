"""What keeps a run alive: its flags, its files, its progress, its signals. It imports nothing from outside."""
