//! Perplexity and benchmarks.
