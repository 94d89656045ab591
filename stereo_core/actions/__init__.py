"""One file per verb, named in its row of `stereo_core.verbs`. Each has `run(spec, status) -> Outcome`, and only these
files import heavy libraries."""
