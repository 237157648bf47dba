"""The classifier of noised latents, for classifier guidance."""
