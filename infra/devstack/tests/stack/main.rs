//! The stack is real: its nodes keep what they acknowledged, and can be killed, paused and started again.

#[cfg(test)]
mod clients;
mod interception;
mod keep;
mod nodes;
mod quorum;
mod transactions;

/// Tests that treat nodes badly or need the machine for themselves take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
