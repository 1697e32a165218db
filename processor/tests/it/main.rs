//! The processor as a process, on a real broker and a real CQL server.

mod crash;
mod dead_letters;
mod doubt;
mod fencing;
mod hanging;
mod rebalance;
mod regions;
mod relay;
mod replay;
mod slow;
mod support;
