"""The command line: one thin main a verb."""
