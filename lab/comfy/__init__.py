"""ComfyUI for the lab: found or fetched, loaded into a process, run as a server, driven through its editor."""
