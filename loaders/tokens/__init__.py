"""Text to tokens and back: tokenizer, detokenizer, chat template."""
