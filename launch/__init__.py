"""Where a command runs: launchers that know commands, environments and queues, and nothing of models."""
