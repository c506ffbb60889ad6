"""Other engines on the same jobs: small programs of our own, built and installed on demand."""
