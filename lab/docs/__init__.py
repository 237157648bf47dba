"""What writes the templates, blueprints, translations and pictures of the documents."""
