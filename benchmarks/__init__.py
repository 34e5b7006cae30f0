"""Speed and quality, each one command, each with a peer or a limit measured in the same run."""
