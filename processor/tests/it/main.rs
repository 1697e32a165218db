//! The processor as a process, on a real broker and a real CQL server.

mod crash;
mod dead_letters;
mod doubt;
mod fencing;
mod ledger;
mod mutated;
#[path = "../../../schemas/tests/support/mutation.rs"]
mod mutation;
mod rebalance;
mod regions;
mod relay;
mod replay;
mod slow;
mod stray;
mod support;
