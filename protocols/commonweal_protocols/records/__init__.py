"""Reading a log from a folder or a URL, verifying it, and replaying it into a state."""
