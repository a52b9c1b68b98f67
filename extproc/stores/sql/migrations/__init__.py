"""How the tables came to be. Each file in `versions` is one step; `env.py` is what Alembic runs."""
