//! The .ws container through the library's front door: what is written is read, what is damaged is refused.
mod corrupt;
mod fixture;
mod open;
mod roundtrip;
mod spec;
mod write;
