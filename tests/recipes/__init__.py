"""What the recipes of stages/README.md make: each one file, outside stages/. See tests/test_recipes.py."""
