"""Tokenizers behind one face: SentencePiece models and Hugging Face tokenizer.json."""
