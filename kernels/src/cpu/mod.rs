//! Instruction-set paths of the products; `portable` is the oracle.
