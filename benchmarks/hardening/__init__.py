"""What hostile input and clients cost a server, and what a good client beside them sees."""
