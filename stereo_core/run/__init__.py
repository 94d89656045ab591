"""What surrounds an action: results folder, record, storage, processes, signals, exit code."""
