"""What the documentation site is built from besides docs/: reference pages made from the code itself."""
