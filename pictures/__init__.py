"""Work on finished pictures: pasting, blending. Knows nothing of the host or of sampling."""
