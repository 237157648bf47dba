"""What the nodes keep in files: safetensors alone, checked in full before they are used. Knows nothing of the host."""
