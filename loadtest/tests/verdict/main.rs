//! The checker of `loadtest chaos`: what is in order passes, and every way to break a promise is found.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod one_region;
mod records;
mod two_regions;
