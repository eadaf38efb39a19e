"""The HTTP service: a search engine, a retriever or a re-ranker, in the words that existing clients speak."""
