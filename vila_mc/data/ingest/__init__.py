"""Raw samples to indexed datasets: encode, reject, resume.

May import sources, tokenizers and indexed.
"""
