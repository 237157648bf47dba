"""The depth network, for the depth loss; the host's stock loader tells its sizes from its file."""
