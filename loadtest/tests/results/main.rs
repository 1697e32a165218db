//! What is made of results: the page, comparisons, and one result of several processes'.
#![allow(missing_docs, clippy::unwrap_used, reason = "helpers of tests")]

mod compare;
mod merge;
mod report;
mod sample;
