"""One file a verb, as its row in `stereo_core.verbs` says. Each has `run(spec, status) -> Outcome` and imports heavy
libraries only inside its own file."""
