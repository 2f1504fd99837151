"""What is seen of VideoSSL in notebooks, and batch work around them; it imports ``videossl_core``."""
