"""What can be configured, how it is read, and which experiment may resume from which."""
