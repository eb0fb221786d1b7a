"""Products with 1 to 16 tokens: `multiply.py`, from values of codes and words of scales."""
