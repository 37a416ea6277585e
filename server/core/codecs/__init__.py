"""PNG, JPEG and WebP: what a file is by its bytes, what decoding it would cost, and its pixels. Knows Pillow only."""
