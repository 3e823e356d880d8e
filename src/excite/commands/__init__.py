"""The commands, one file each: its signature, one call, what it shows. Everything heavy is imported inside."""
