"""The KV cache's second home: pages and recurrent states in files, found again by a later run."""
