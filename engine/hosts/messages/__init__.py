"""What is said between a coordinator and its hosts: frames, rows in a format of the wire, the greeting."""
