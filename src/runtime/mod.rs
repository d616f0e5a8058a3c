//! A loaded model: prefill, decode, sampling, chat template, stopping.
