"""What a network costs, without a server: inference, forms of its graph, precisions, modes, training steps."""
