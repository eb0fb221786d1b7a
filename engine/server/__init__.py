"""`headrace serve`: one model behind the HTTP APIs that clients speak, and a page that shows what it reads."""
