"""The commands, one file each: signature, one library call, output. Heavy imports happen inside the functions."""
