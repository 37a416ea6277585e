"""The query guard: who asks about nearly the same image again and again, as attacks on answers do."""
