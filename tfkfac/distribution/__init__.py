"""Work and memory spread over workers, as KAISA does (mathematics.md §7)."""
