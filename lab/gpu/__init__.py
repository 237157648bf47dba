"""What a machine with a GPU and no network needs to run the gpu tier and the benchmark, and the run itself."""
