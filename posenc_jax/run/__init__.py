"""What a run is: its config, what that config asks for, and the files that are kept of it."""
