"""What longer methods do inside a run of the host; they take of it what `nodes/host` gives, and the mathematics."""
