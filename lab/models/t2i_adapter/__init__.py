"""The T2I-Adapter, which is told by silhouettes."""
