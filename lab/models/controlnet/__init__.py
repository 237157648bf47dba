"""The ControlNet, which is told by outlines."""
