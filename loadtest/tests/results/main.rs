//! What is made of results: the page, comparisons, and one result of several processes'.
#![allow(missing_docs)]

mod compare;
mod merge;
mod report;
mod sample;
