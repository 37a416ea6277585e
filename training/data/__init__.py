"""Images to train and judge on: data sets, folders of one's own, and what becomes of them on their way into a batch."""
