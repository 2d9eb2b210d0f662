"""What I add to tokenprune; pyproject.toml says by which names it is found."""
