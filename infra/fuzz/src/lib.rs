//! What holds for any bytes that a stranger may send, write into the topic, or leave in a configuration.
//!
//! `cargo test` tries good input damaged at random, the seeds in `__fuzz__`, and bytes without sense. In the tests named `any_…`
//! `infra/dev fuzz` has libFuzzer look for more, by the branches that an input takes. What breaks a rule is left in `__fuzz__/…/crashes`,
//! where every test run tries it again.

#[cfg(test)]
mod configuration;
#[cfg(test)]
#[path = "../../../schemas/tests/support/mutation.rs"]
mod mutation;
#[cfg(test)]
mod packet;
#[cfg(test)]
mod record;
#[cfg(test)]
mod stream;
