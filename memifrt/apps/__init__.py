"""Old module paths. They warn, and go on working until 1.0."""
