"""Everything that shows and checks Steer: the shapes checkpoint, the headless runner, the test server."""
