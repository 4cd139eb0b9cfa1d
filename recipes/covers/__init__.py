"""How the network that tells what lies over a face was made: docs/covers.md."""
