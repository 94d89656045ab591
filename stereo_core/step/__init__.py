"""An action behind KFP's executor protocol: what `depth_net-launch ACTION EXECUTOR_INPUT_JSON` runs."""
