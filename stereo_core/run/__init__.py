"""Everything around an action: results folder, status.json, object storage, processes, signals, exit code."""
