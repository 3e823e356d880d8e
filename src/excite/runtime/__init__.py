"""The environment of this process: its job, device, package versions and git checkout; and timing of steps."""
