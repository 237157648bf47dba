"""The demo: every example workflow run headless, its pictures, and one sheet of them."""
