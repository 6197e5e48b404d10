"""What strangers' files may not do."""
