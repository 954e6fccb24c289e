"""What keeps a run alive: flags, files, progress, signals, processes. It imports no module of the other folders."""
