"""What prediction and evaluation write: the journal, the encoding of predictions, file names, and safe writing."""
