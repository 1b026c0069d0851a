"""Models of others and for others: Hugging Face directories and GGUF files, both ways."""
